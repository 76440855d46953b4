package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const suite = "common"

// played is a suite that went as said: tests with pass, fail, skip, or nothing if they did not end.
func played(t *testing.T, words ...string) *result {
	t.Helper()
	var events strings.Builder
	r := newResult(suite, nil)
	for _, word := range words {
		test, how, _ := strings.Cut(word, "=")
		if !strings.Contains(test, "/") {
			r.listed = append(r.listed, test)
		}
		events.WriteString(`{"Action":"run","Test":"` + test + `"}` + "\n")
		if how != "" {
			events.WriteString(`{"Action":"` + how + `","Test":"` + test + `"}` + "\n")
		}
	}
	if err := r.read(strings.NewReader(events.String())); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestJudge(t *testing.T) {
	for _, one := range []struct {
		name string
		list []exception
		went []string
		want count
	}{
		{"all is well", nil, []string{"A=pass", "B=skip"}, count{passed: 1, skipped: 1}},
		{"a failure", nil, []string{"A=fail"}, count{faults: 1}},
		{"a listed failure", []exception{{fails, suite, "A"}}, []string{"A=fail"}, count{excepted: 1}},
		{"one that is listed and passes", []exception{{fails, suite, "A"}}, []string{"A=pass"}, count{passed: 1, faults: 1}},
		{"one that may fail and does", []exception{{mayFail, suite, "A"}}, []string{"A=fail"}, count{excepted: 1}},
		{"one that may fail and passes", []exception{{mayFail, suite, "A"}}, []string{"A=pass"}, count{passed: 1}},
		{"one that may fail and does not end", []exception{{mayFail, suite, "A"}}, []string{"A"}, count{faults: 1}},
		{"one that may fail and is not there", []exception{{mayFail, suite, "B"}}, []string{"A=pass"}, count{passed: 1, faults: 1}},
		{"one that is not there", []exception{{fails, suite, "B"}}, []string{"A=pass"}, count{passed: 1, faults: 1}},
		{"one left out that is not there", []exception{{notRun, suite, "B"}}, []string{"A=pass"}, count{passed: 1, faults: 1}},
		{"a listed part", []exception{{fails, suite, "A/x"}}, []string{"A=fail", "A/x=fail", "A/y=pass"}, count{excepted: 1}},
		{"one part too many", []exception{{fails, suite, "A/x"}}, []string{"A=fail", "A/x=fail", "A/y=fail"}, count{faults: 2}},
		{"the parts of a listed test", []exception{{fails, suite, "A"}}, []string{"A=fail", "A/x=fail"}, count{excepted: 1}},
		{"one that does not end", nil, []string{"A=pass", "B"}, count{passed: 1, faults: 1}},
		{"another suite's exception", []exception{{fails, "other", "A"}}, []string{"A=fail"}, count{faults: 1}},
	} {
		if got := played(t, one.went...).judge(one.list, ""); got != one.want {
			t.Errorf("%s: %+v, want %+v", one.name, got, one.want)
		}
	}
}

func TestTestsAfterAPanicAreFaults(t *testing.T) {
	whole := newResult(suite, []string{"A", "B"})
	part := played(t, "A")
	part.listed = []string{"A", "B"}
	whole.add(part)
	if got := whole.judge(nil, ""); got.faults != 2 {
		t.Errorf("%+v, want 2 faults", got)
	}
}

func TestExceptionsSayWhy(t *testing.T) {
	path := filepath.Join(t.TempDir(), "exceptions")
	for text, want := range map[string]string{
		"skip common A: for a reason\n":        "",
		"# nothing\n\nfile a_test.go: why\n":   "",
		"skip common A\n":                      "no reason",
		"skip common A/x: for a reason\n":      "only a whole test",
		"fails common A/x: for a reason\n":     "",
		"may-fail common A: for a reason\n":    "",
		"fails nowhere A: for a reason\n":      "no suite nowhere",
		"perhaps common A: for a reason\n":     "expected `file",
		"fails common A and B: for a reason\n": "expected `file",
	} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := read(path)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}
