// Command differ finds out where a server answers otherwise than etcd. It does the same random
// steps to both, one after another, and demands equal answers: every field, every error code and
// message, every watch event. What need not be equal is listed at `masks.mask`.
//
// A session follows from its seed alone, so a report names the one command that shows it again.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"satrap.invalid/interop/etcd/internal/ring"
)

// reportedSteps is how many of the last steps a report prints when it found nothing shorter.
const reportedSteps = 30

type options struct {
	both             ring.Both
	seed             uint64
	sessions, steps  int
	least, selfCheck int
	replayFile, dump string
	keepGoing        bool
	without          string
	verbose          bool
	shrink           time.Duration
}

func main() {
	o := parse()
	clean, err := o.run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "differ:", err)
		os.Exit(2)
	}
	if !clean {
		os.Exit(1)
	}
}

func parse() *options {
	o := &options{}
	o.both.Register(flag.CommandLine)
	flag.Uint64Var(&o.seed, "seed", 1, "seed of the first session; the others count up from it")
	flag.IntVar(&o.sessions, "sessions", 10, "how many sessions")
	flag.IntVar(&o.steps, "steps", 10_000, "steps of each session")
	flag.IntVar(&o.least, "least", 0, "fail if fewer than `N` steps were about keys, leases and watches")
	flag.IntVar(&o.selfCheck, "self-check", 0, "make the server under test lie about one in `N` steps; every lie must be found")
	flag.StringVar(&o.replayFile, "replay", "", "do the steps of this `file` and nothing else")
	flag.StringVar(&o.dump, "dump", "", "write the shortened steps of a difference to this `file`")
	flag.BoolVar(&o.keepGoing, "keep-going", false, "do the other sessions after a difference too")
	flag.StringVar(&o.without, "without", "", "leave out the `kinds` of step with these ends, with commas between")
	flag.BoolVar(&o.verbose, "verbose", false, "also print how often each error was answered")
	flag.DurationVar(&o.shrink, "shrink", time.Minute, "how long to look for fewer steps that differ")
	flag.Parse()
	return o
}

// run does what was asked and says whether the servers were equal.
func (o *options) run() (bool, error) {
	defer o.both.Stop()
	if err := o.both.Start(); err != nil {
		return false, err
	}
	a, err := newSide(o.both.Etcd)
	if err != nil {
		return false, err
	}
	if o.selfCheck > 0 {
		answerMax = lyingAnswerMax
		return o.checkSelf(a)
	}
	b, err := newSide(o.both.Satrap)
	if err != nil {
		return false, err
	}
	if o.replayFile != "" {
		return o.replay(a, b)
	}
	return o.compare(a, b)
}

func (o *options) replay(a, b *side) (bool, error) {
	text, err := os.ReadFile(o.replayFile)
	if err != nil {
		return false, err
	}
	var steps []step
	if err := json.Unmarshal(text, &steps); err != nil {
		return false, err
	}
	found, err := replay(a, b, steps)
	if err != nil || found == nil {
		fmt.Println(len(steps), "steps, no difference")
		return true, err
	}
	fmt.Println(found)
	return false, nil
}

func (o *options) compare(a, b *side) (bool, error) {
	begun := time.Now()
	total, differences := newTally(), 0
	for i := range o.sessions {
		s, err := play(a, b, o.seed+uint64(i), o.steps, strings.Split(o.without, ","))
		if err != nil {
			return false, err
		}
		total.add(s.tally)
		if s.found != nil {
			differences++
			o.report(a, b, s)
			if !o.keepGoing {
				break
			}
		}
	}
	total.print(o.verbose)
	data := total.aboutData()
	fmt.Printf("%d operations, %d of them on keys, leases and watches, %d answered with an error, %d watch events, "+
		"%d differences, %.0f s\n",
		total.steps, data, total.errors, total.events, differences, time.Since(begun).Seconds())
	if data < o.least {
		fmt.Println("that is fewer than", o.least)
	}
	return differences == 0 && data >= o.least, nil
}

// report prints a difference, the fewest steps found that show it, and how to see it again.
func (o *options) report(a, b *side, s *session) {
	fmt.Printf("DIFFERENCE with seed %d\n%s\n", s.seed, s.found)
	o.write(s.done)
	fewest := shrink(a, b, s.done, o.shrink)
	o.write(fewest)
	shownSteps := fewest[max(0, len(fewest)-reportedSteps):]
	fmt.Printf("the last %d of %d steps that show it:\n", len(shownSteps), len(fewest))
	for _, one := range shownSteps {
		fmt.Println("  ", one)
	}
	again := fmt.Sprintf("--seed %d --sessions 1 --steps %d", s.seed, o.steps)
	if o.without != "" {
		again += " --without " + o.without
	}
	if o.dump != "" {
		again += ", or --replay " + o.dump
	}
	fmt.Println("again:", os.Args[0], "<the same servers>", again)
}

// write keeps steps in the file that was asked for.
func (o *options) write(steps []step) {
	if o.dump == "" {
		return
	}
	text, err := json.MarshalIndent(steps, "", " ")
	if err == nil {
		err = os.WriteFile(o.dump, text, 0o644)
	}
	if err != nil {
		fmt.Println("cannot write", o.dump, err)
	}
}

func (t *tally) add(other tally) {
	t.steps += other.steps
	t.errors += other.errors
	t.events += other.events
	t.barriers += other.barriers
	for kind, count := range other.kinds {
		t.kinds[kind] += count
	}
	for refusal, count := range other.refusals {
		t.refusals[refusal] += count
	}
}

// aboutData is how many steps were about keys, leases and watches. The others are about users, alarms
// and hashes, or wait.
func (t *tally) aboutData() int {
	total := 0
	for kind, count := range t.kinds {
		service, _, _ := strings.Cut(strings.TrimPrefix(kind, "/etcdserverpb."), "/")
		switch service {
		case "KV", "Lease", kindWatch, kindWatchOnce, kindKeepAlive, kindStream:
			total += count
		}
	}
	return total
}

// print lists how often each kind of step was done, and each error was answered.
func (t *tally) print(verbose bool) {
	fmt.Println(strings.Join(counts(t.kinds), ", "))
	if verbose {
		fmt.Println(strings.Join(counts(t.refusals), "\n"))
	}
}

// counts are lines of what and how often, in order. Of a method only the last part is shown.
func counts(of map[string]int) []string {
	var lines []string
	for what, count := range of {
		if strings.HasPrefix(what, "/") {
			what = what[strings.LastIndex(what, "/")+1:]
		}
		lines = append(lines, fmt.Sprintf("%s %d", what, count))
	}
	slices.Sort(lines)
	return lines
}
