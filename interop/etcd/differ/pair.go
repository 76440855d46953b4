package main

import (
	"fmt"
	"math"
	"slices"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

// pair is both servers in one session: `a` is right by definition, `b` is under test.
type pair struct {
	a, b *side
	// base is the revision both had when the session began, revision the newest one, and compacted
	// the one of the last compaction.
	base, revision, compacted int64
	// waiting is the highest revision a watch was asked to begin at.
	waiting int64
	tally
}

func newTally() tally { return tally{kinds: map[string]int{}, refusals: map[string]int{}} }

// tally counts what a session did.
type tally struct {
	steps, errors, events, barriers int
	// kinds counts steps by what they call, and refusals errors by what etcd said.
	kinds, refusals map[string]int
}

// difference is the first disagreement of a session.
type difference struct {
	step step
	// number is which step of the session it was, from 0.
	number int
	what   string
	a, b   string
}

// Error is the report.
func (d *difference) Error() string {
	return fmt.Sprintf("step %d, %s\n  %s\n  etcd:   %s\n  satrap: %s", d.number, d.what, d.step, d.a, d.b)
}

// do performs one step on both and compares. The answer is the one of `a`.
func (p *pair) do(one step) (answer, *difference) {
	number := p.steps
	p.steps++
	p.kinds[one.kind]++
	if one.kind == kindBarrier {
		return answer{}, p.barrier(one, number)
	}
	var a, b answer
	var both sync.WaitGroup
	both.Go(func() { a = p.a.perform(one, p.base) })
	b = p.b.perform(one, p.base)
	both.Wait()
	if a.failure != nil {
		p.errors++
		p.refusals[a.String()]++
	}
	p.note(one, a)
	if !a.same(b) {
		return a, &difference{step: one, number: number, what: "answers differ", a: a.String(), b: b.String()}
	}
	return a, nil
}

// note follows the revision and the watches that wait for one.
func (p *pair) note(one step, a answer) {
	if headed, ok := a.reply.(interface{ GetHeader() *pb.ResponseHeader }); ok {
		p.revision = max(p.revision, headed.GetHeader().GetRevision())
	}
	if request, ok := one.concrete(p.base, 0).(*pb.CompactionRequest); ok && a.failure == nil {
		p.compacted = request.Revision
	}
	if request, ok := one.request.(*pb.WatchRequest); ok && one.kind == kindWatch && a.failure == nil {
		if create := request.GetCreateRequest(); create != nil {
			concrete := one.concrete(p.base, 0).(*pb.WatchRequest)
			p.waiting = max(p.waiting, concrete.GetCreateRequest().StartRevision)
		}
	}
}

// barrier waits until every watch has delivered everything, and compares all of it.
func (p *pair) barrier(one step, number int) *difference {
	p.barriers++
	differ := func(what, a, b string) *difference {
		return &difference{step: one, number: number, what: what, a: a, b: b}
	}
	// etcd reports no progress while a watch waits for a revision to come.
	for p.waiting > p.revision && p.waiting-p.revision < math.MaxInt32 {
		if _, found := p.do(call(&pb.PutRequest{Key: []byte("pad")})); found != nil {
			return found
		}
	}
	var failed [2]error
	var both sync.WaitGroup
	both.Go(func() { failed[0] = p.a.watches.settle(p.revision) })
	failed[1] = p.b.watches.settle(p.revision)
	both.Wait()
	if failed[0] != nil || failed[1] != nil {
		return differ("a watch stream ended or stuck", fmt.Sprint(failed[0]), fmt.Sprint(failed[1]))
	}
	a, b := p.a.watches, p.b.watches
	a.mu.Lock()
	defer a.mu.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	if a.newest > p.revision || b.newest > p.revision {
		return differ("a header from the future", fmt.Sprint(a.newest), fmt.Sprint(b.newest))
	}
	if len(a.faults)+len(b.faults) != 0 {
		return differ("rules of a watch stream broken", fmt.Sprint(a.faults), fmt.Sprint(b.faults))
	}
	for id, left := range a.logs {
		right := b.logs[id]
		for _, event := range left.events {
			p.a.masks.maskLeases(event)
		}
		for _, event := range right.get() {
			p.b.masks.maskLeases(event)
		}
		if right == nil {
			return differ(fmt.Sprintf("only one has watch %d", id), "has it", "has not")
		}
		left.events, right.events = p.kept(left.events), p.kept(right.events)
		if what, x, y := left.compare(right); what != "" {
			return differ(fmt.Sprintf("watch %d (%s): %s", id, shown(left.request), what), x, y)
		}
		p.events += len(left.events)
		left.events, right.events = nil, nil
		if !left.open {
			delete(a.logs, id)
			delete(b.logs, id)
		}
	}
	return nil
}

// compare says how two logs of one watch differ; nothing if they do not.
func (l *watchLog) compare(other *watchLog) (what, left, right string) {
	for i := range min(len(l.events), len(other.events)) {
		if !l.sameEvent(l.events[i], other.events[i]) {
			return fmt.Sprintf("event %d", i), shown(l.events[i]), shown(other.events[i])
		}
	}
	if l.open != other.open || (l.end == nil) != (other.end == nil) {
		return "one was ended", fmt.Sprint(l.end), fmt.Sprint(other.end)
	}
	if l.end != nil && !proto.Equal(withoutRevision(l.end), withoutRevision(other.end)) {
		return "ended differently", shown(l.end), shown(other.end)
	}
	// What was under way when a watch was canceled may or may not have come.
	if (l.open || l.end != nil) && len(l.events) != len(other.events) {
		return "number of events", describe(l.events), describe(other.events)
	}
	return "", "", ""
}

// kept leaves out the events of the very revision that was compacted last. A watch may begin there,
// but which of its events etcd still has depends on how far its compaction got: first it forgets
// the deleted keys. What a watch delivered before the compaction was compared before it.
func (p *pair) kept(events []*mvccpb.Event) []*mvccpb.Event {
	return slices.DeleteFunc(events, func(event *mvccpb.Event) bool {
		return event.GetKv().GetModRevision() <= p.compacted
	})
}

// get is what a log holds, if there is one.
func (l *watchLog) get() []*mvccpb.Event {
	if l == nil {
		return nil
	}
	return l.events
}

// sameEvent compares what etcd delivered with what the other did. etcd begins to catch up before it
// notes that a watch asked for previous values, so the first of those that were there already may
// lack them.
func (l *watchLog) sameEvent(etcds, other *mvccpb.Event) bool {
	if etcds.PrevKv == nil && other.PrevKv != nil && etcds.GetKv().GetModRevision() <= l.born {
		other = proto.CloneOf(other)
		other.PrevKv = nil
	}
	return proto.Equal(etcds, other)
}

// withoutRevision masks the header's revision of an unsolicited response: it says when
// the server got around to it.
func withoutRevision(response *pb.WatchResponse) *pb.WatchResponse {
	masked := proto.Clone(response).(*pb.WatchResponse)
	if masked.Header != nil {
		masked.Header.Revision = min(masked.Header.Revision, 1)
	}
	return masked
}

func describe(events []*mvccpb.Event) string {
	text := fmt.Sprintf("%d events", len(events))
	for _, event := range events[max(0, len(events)-3):] {
		text += fmt.Sprintf(" %s@%d(%q)", event.Type, event.GetKv().GetModRevision(), event.GetKv().GetKey())
	}
	return text
}
