package main

import (
	"slices"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"satrap.invalid/interop/etcd/internal/ring"
)

// guardedOneIn is how many sessions there are for each that runs with authentication on.
const guardedOneIn = 5

// begin makes both servers equal and opens a watch stream on each.
func begin(a, b *side) (*pair, error) {
	base, err := ring.Level(a.connections[0], b.connections[0])
	if err != nil {
		return nil, err
	}
	p := &pair{a: a, b: b, base: base, revision: base, compacted: base, tally: newTally()}
	for _, s := range []*side{a, b} {
		s.guarded = false
		ctx, cancel := s.context("")
		auth, err := pb.NewAuthClient(s.connections[0]).AuthStatus(ctx, &pb.AuthStatusRequest{})
		cancel()
		if err != nil {
			return nil, err
		}
		s.masks.authBase = auth.AuthRevision
		if s.watches, err = openWatches(s); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// end closes the watch streams.
func (p *pair) end() {
	p.a.watches.cancel()
	p.b.watches.cancel()
}

// session is the outcome of one seed.
type session struct {
	seed uint64
	// without are the ends of the kinds of step that are left out.
	without []string
	done    []step
	found   *difference
	tally   tally
}

// play runs the session of one seed up to the first difference.
func play(a, b *side, seed uint64, steps int, without []string) (*session, error) {
	p, err := begin(a, b)
	if err != nil {
		return nil, err
	}
	defer p.end()
	g := newGenerator(seed)
	s := &session{seed: seed, without: without}
	s.found = s.script(p, g, steps)
	s.tally = p.tally
	return s, nil
}

// script is the order of a session.
func (s *session) script(p *pair, g *generator, steps int) *difference {
	if g.oneIn(guardedOneIn) {
		return s.guarded(p, g, steps)
	}
	for p.steps < steps {
		if found := s.perform(p, g, g.next(ordinary)); found != nil {
			return found
		}
	}
	return s.perform(p, g, []step{{kind: kindBarrier}})
}

// guarded is the order of a session with authentication.
func (s *session) guarded(p *pair, g *generator, steps int) *difference {
	if found := s.perform(p, g, rooting()); found != nil {
		return found
	}
	for p.steps < steps/20 {
		if found := s.perform(p, g, g.next(before)); found != nil {
			return found
		}
	}
	if found := s.perform(p, g, enabling()); found != nil {
		return found
	}
	for p.steps < steps {
		if found := s.perform(p, g, g.next(guarded)); found != nil {
			return found
		}
	}
	return s.perform(p, g, disabling())
}

// perform does steps and lets the generator follow.
func (s *session) perform(p *pair, g *generator, steps []step) *difference {
	for _, one := range steps {
		if slices.ContainsFunc(s.without, func(end string) bool {
			return end != "" && strings.HasSuffix(one.kind, end)
		}) {
			continue
		}
		s.done = append(s.done, one)
		got, found := p.do(one)
		if found != nil {
			return found
		}
		g.followed(one, got, p.revision-p.base+relative)
	}
	return nil
}

// replay does given steps and returns the first difference.
func replay(a, b *side, steps []step) (*difference, error) {
	p, err := begin(a, b)
	if err != nil {
		return nil, err
	}
	defer p.end()
	for _, one := range steps {
		if _, found := p.do(one); found != nil {
			return found, nil
		}
	}
	return nil, nil
}
