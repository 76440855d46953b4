package main

import (
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"
)

// slowMax is how long a check may take: etcdctl loads the cluster for a minute.
const slowMax = 3 * time.Minute

// figures are what a check measured. That it was good enough is what counts.
var figures = regexp.MustCompile(`-?[0-9.]+ ?(?:writes/s|s|MB|%)?`)

// slowChecks runs the checks that etcdctl itself judges, on both clusters at once.
func (p *program) slowChecks() bool {
	passed := true
	for _, c := range []string{"check perf --load=s", "check datascale --load=s"} {
		var verdicts [2]string
		var both sync.WaitGroup
		for i, s := range []*side{p.a, p.b} {
			both.Go(func() {
				arguments, err := s.arguments(command{words: strings.Fields(c)}, "simple", 0, nil)
				if err != nil {
					verdicts[i] = err.Error()
					return
				}
				process := begin(p.etcdctl, arguments, "")
				select {
				case <-process.done:
				case <-time.After(slowMax):
					_ = process.process.Process.Kill()
					<-process.done
				}
				verdicts[i] = verdict(process.printed())
			})
		}
		both.Wait()
		equal := verdicts[0] == verdicts[1]
		passed = passed && equal
		fmt.Printf("etcdctl %s: %s, etcd says:\n%s", p.version, c, verdicts[0])
		if !equal {
			fmt.Printf("DIFFERENCE, satrap says:\n%s", verdicts[1])
		}
	}
	return passed
}

// judgment is what a check says, which may stand behind what it drew of its progress.
var judgment = regexp.MustCompile(`(?:PASS|FAIL|Error)[^\r\n]*`)

// verdict is what judges, without what was measured.
func verdict(text string) string {
	said := judgment.FindAllString(text, -1)
	if len(said) == 0 {
		return "no verdict: " + text
	}
	return figures.ReplaceAllString(strings.Join(said, "\n"), "<figure>") + "\n"
}
