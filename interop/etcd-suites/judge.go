package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// kind is what an exception says about a test.
type kind string

const (
	// leftOut is a file whose tests are all not run; its name is the path.
	leftOut kind = "file"
	// notRun is a test that is not run, because it would end the suite or asks for what only etcd in its
	// own process has.
	notRun kind = "skip"
	// fails is a test that is run and must fail.
	fails kind = "fails"
	// mayFail is a test that is run, and may pass or fail, because it depends on times.
	mayFail kind = "may-fail"
)

// exception is a line of the list.
type exception struct {
	kind  kind
	suite string
	name  string
}

// read reads the list: KIND PATH-OR-SUITE TEST: REASON, without a test if it is a file.
func read(path string) ([]exception, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var all []exception
	for number, line := range strings.Split(string(text), "\n") {
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		head, reason, found := strings.Cut(line, ": ")
		words := strings.Fields(head)
		fault := func(what string) error { return fmt.Errorf("%s:%d: %s", path, number+1, what) }
		switch {
		case !found || reason == "":
			return nil, fault("no reason is given after `: `")
		case len(words) == 2 && words[0] == string(leftOut):
			all = append(all, exception{kind: leftOut, name: words[1]})
		case len(words) == 3 && words[0] == string(notRun) && strings.Contains(words[2], "/"):
			return nil, fault("only a whole test can be left out, not a part of one")
		case len(words) == 3 && slices.Contains([]kind{notRun, fails, mayFail}, kind(words[0])):
			if !slices.Contains(suites, words[1]) {
				return nil, fault("no suite " + words[1])
			}
			all = append(all, exception{kind(words[0]), words[1], words[2]})
		default:
			return nil, fault("expected `file PATH: REASON`, or `skip`, `fails` or `may-fail` with `SUITE TEST: REASON`")
		}
	}
	return all, nil
}

// result is how a suite went.
type result struct {
	suite  string
	listed []string
	// ended is pass, fail or skip, by the name of the test; that of the suite itself is empty.
	ended  map[string]string
	output map[string][]string
}

func newResult(suite string, listed []string) *result {
	return &result{suite, listed, map[string]string{}, map[string][]string{}}
}

// toRun are the tests that are to be run, less those that the list says.
func (r *result) toRun(exceptions []exception, only string) []string {
	return slices.DeleteFunc(slices.Clone(r.listed), func(test string) bool {
		return !strings.HasPrefix(test, only) || slices.Contains(exceptions, exception{notRun, r.suite, test})
	})
}

// add adds how some of the tests went.
func (r *result) add(part *result) {
	if part == nil {
		return
	}
	for test, lines := range part.output {
		r.output[test] = append(r.output[test], lines...)
	}
	for test, how := range part.ended {
		// Of the suite itself, the worst remains.
		if test != "" || r.ended[test] == "" || r.ended[test] == "pass" {
			r.ended[test] = how
		}
	}
	for _, test := range part.listed {
		if part.ended[test] == "" {
			r.ended[test] = "not run"
		}
	}
}

// outputMax is how many lines of a test are kept: the first ones, which say how it panicked if it did.
const outputMax = 60

// read reads the events of test2json.
func (r *result) read(events io.Reader) error {
	lines := bufio.NewReader(events)
	for {
		line, err := lines.ReadBytes('\n')
		if err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		var event struct{ Action, Test, Output string }
		if err := json.Unmarshal(line, &event); err != nil {
			return fmt.Errorf("%s: %w: %s", r.suite, err, line)
		}
		switch event.Action {
		case "pass", "fail", "skip":
			r.ended[event.Test] = event.Action
		case "start", "run", "pause", "cont":
			if _, known := r.ended[event.Test]; !known {
				r.ended[event.Test] = "not ended"
			}
		case "output":
			// The clients' own logs say nothing about the test.
			if len(r.output[event.Test]) < outputMax && !strings.Contains(event.Output, "logger.go:") {
				r.output[event.Test] = append(r.output[event.Test], event.Output)
			}
		}
	}
}

// count counts tests; the parts of one are not counted apart, unless they are faults.
type count struct{ passed, excepted, skipped, faults int }

func (c *count) add(other count) {
	c.passed += other.passed
	c.excepted += other.excepted
	c.skipped += other.skipped
	c.faults += other.faults
}

// judge compares how the tests went with what the list says, and prints what is wrong.
func (r *result) judge(exceptions []exception, only string) count {
	var c count
	explained := map[string]bool{}
	for _, one := range exceptions {
		if one.suite != r.suite || !strings.HasPrefix(one.name, only) {
			continue
		}
		test, _, _ := strings.Cut(one.name, "/")
		switch {
		case !slices.Contains(r.listed, test):
			r.fault(&c, one.name, "is in the list of exceptions and does not exist")
		case one.kind == fails && r.ended[one.name] != "fail":
			r.fault(&c, one.name, fmt.Sprintf("is listed as failing and went otherwise: %q", r.ended[one.name]))
		case one.kind == notRun:
			c.excepted++
		case one.kind == mayFail:
			fmt.Printf("NOTE %s %s may fail, and this time it ended with %q\n", r.suite, one.name, r.ended[one.name])
			explained[one.name] = true
		default:
			explained[one.name] = true
		}
	}
	var skipped []string
	for test, how := range r.ended {
		r.judgeOne(&c, test, how, explained)
		if how == "skip" && isWhole(test) {
			skipped = append(skipped, test)
		}
	}
	if len(skipped) > 0 {
		slices.Sort(skipped)
		fmt.Printf("NOTE %s skipped by themselves: %s\n", r.suite, strings.Join(skipped, ", "))
	}
	c.skipped += len(skipped)
	for test, how := range r.ended {
		if how == "fail" && isWhole(test) && r.excused(test, explained) {
			c.excepted++
		}
	}
	return c
}

// isWhole is whether a name is that of a test, not of a part of one or of the suite.
func isWhole(test string) bool { return test != "" && !strings.Contains(test, "/") }

func (r *result) judgeOne(c *count, test, how string, explained map[string]bool) {
	switch {
	case how == "pass" && isWhole(test):
		c.passed++
	case how == "not ended" || how == "not run":
		r.fault(c, test, "was "+how)
	case how == "fail" && test == "":
		for name, other := range r.ended {
			if name != "" && other != "pass" && other != "skip" {
				return
			}
		}
		r.fault(c, test, "failed although none of its tests did")
	case how == "fail" && !r.excused(test, explained):
		r.fault(c, test, "failed")
	}
}

// excused is whether a test is listed as failing, or failed because parts of it did, all of which are.
func (r *result) excused(test string, explained map[string]bool) bool {
	for name := test; name != ""; {
		if explained[name] {
			return true
		}
		name = name[:max(0, strings.LastIndex(name, "/"))]
	}
	parts := 0
	for name, how := range r.ended {
		if how != "fail" || !strings.HasPrefix(name, test+"/") {
			continue
		}
		parts++
		if !r.excused(name, explained) {
			return false
		}
	}
	return parts > 0
}

func (r *result) fault(c *count, test, what string) {
	c.faults++
	fmt.Printf("FAULT %s %s %s\n%s", r.suite, test, what, strings.Join(r.output[test], ""))
}
