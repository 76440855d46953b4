package main

import (
	"fmt"
	"math/rand/v2"
)

// checkSelf proves that a lie about any field, error or event is found: the server under test is
// etcd too, but behind a liar. Each lie must be found, and nothing else may be.
func (o *options) checkSelf(a *side) (bool, error) {
	l := &liar{Rand: rand.New(rand.NewPCG(o.seed, 7))}
	b, err := newSide(o.both.Satrap, l.options()...)
	if err != nil {
		return false, err
	}
	check := &selfCheck{liar: l, found: map[string]int{}}
	for i := range o.sessions {
		if err := check.session(a, b, o.seed+uint64(i), o); err != nil {
			return false, err
		}
	}
	fmt.Printf("%d lies of %d kinds told, %d found, %d not, %d differences without a lie\n",
		check.total, len(check.found), check.total-len(check.missed), len(check.missed), len(check.false))
	if o.verbose {
		for _, line := range counts(check.found) {
			fmt.Println("  ", line)
		}
	}
	for _, line := range append(check.missed, check.false...) {
		fmt.Println(line)
	}
	return check.total > 0 && len(check.missed)+len(check.false) == 0, nil
}

// selfCheck is what became of the lies so far.
type selfCheck struct {
	liar          *liar
	found         map[string]int
	total         int
	missed, false []string
}

// session plays one session with lies in it, and goes on after each difference.
func (c *selfCheck) session(a, b *side, seed uint64, o *options) error {
	c.liar.set(aboutNothing)
	p, err := begin(a, b)
	if err != nil {
		return err
	}
	defer p.end()
	g := newGenerator(seed)
	for p.steps < o.steps {
		for _, one := range g.next(ordinary) {
			about := aboutNothing
			if g.oneIn(o.selfCheck) {
				about = pick(g, aboutAnswers, aboutEvents)
			}
			c.liar.set(about)
			got, found := p.do(one)
			if about == aboutEvents && found == nil {
				_, found = p.do(step{kind: kindBarrier})
			}
			c.liar.set(aboutNothing)
			lied := c.liar.take()
			if lied != "" && found == nil {
				_, found = p.do(step{kind: kindBarrier})
			}
			c.judge(seed, lied, found, one)
			g.followed(one, got, p.revision-p.base+relative)
			if lied != "" || found != nil {
				// A log that was lied about stays different, so every watch begins anew.
				if err := p.reopen(); err != nil {
					return err
				}
				g.watches = nil
			}
		}
	}
	return nil
}

func (c *selfCheck) judge(seed uint64, lied string, found *difference, one step) {
	switch {
	case lied != "" && found != nil:
		c.total++
		c.found[lied]++
	case lied != "":
		c.total++
		c.missed = append(c.missed, fmt.Sprintf("NOT FOUND, seed %d: %s in the answer to %s", seed, lied, one))
	case found != nil:
		c.false = append(c.false, fmt.Sprintf("NO LIE, seed %d: %s", seed, found))
	}
}

func (l *liar) set(about subject) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.about = about
}

// reopen closes the watch streams of both sides and opens new ones.
func (p *pair) reopen() error {
	p.end()
	for _, s := range []*side{p.a, p.b} {
		watches, err := openWatches(s)
		if err != nil {
			return err
		}
		s.watches = watches
	}
	p.waiting = 0
	return nil
}
