// Command etcd-suites runs etcd's own integration tests, those that need only endpoints, on rings of
// Satrap.
//
// The tests come from the module go.etcd.io/etcd/tests/v3 as they are. A build overlay puts the files
// of overlay/ in the place of the one that starts etcd in the process of the test. The go command takes
// no overlay for what it has downloaded, so the module is copied to the output folder first.
//
// The file `exceptions` names each test that is not run, that fails or that may fail, and why. A line
// about a test that is not there is an error, and so is one about a failure that did not happen.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	module = "go.etcd.io/etcd/tests/v3"
	// partTests is how many tests of a suite run in one process, one after the other.
	partTests = 8
	// partMax is how long that may take.
	partMax = 3 * time.Minute
	// together is how many of these run at once. They mostly wait.
	together = 5
)

// suites are the packages below the module, the longest first.
var suites = []string{
	"common", "integration/clientv3/lease", "integration/clientv3", "integration/clientv3/watch",
	"integration/clientv3/experimental/recipes", "integration/clientv3/concurrency", "integration/clientv3/naming",
}

type settings struct {
	source, satrap, startRing, out, rings, only string
}

func main() {
	var s settings
	flag.StringVar(&s.source, "source", ".", "the `folder` of this program's source")
	flag.StringVar(&s.satrap, "satrap", "", "the `program` under test")
	flag.StringVar(&s.startRing, "start-ring", "", "the `script` that starts a ring")
	flag.StringVar(&s.out, "out", "", "the `folder` for what is built")
	flag.StringVar(&s.rings, "rings", os.TempDir(), "the `folder` for the rings")
	flag.StringVar(&s.only, "only", "", "run only tests whose name begins with `text`, and show what they print")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	faults, err := s.run(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "etcd-suites:", err)
		os.Exit(2)
	}
	if faults > 0 {
		os.Exit(1)
	}
}

func (s *settings) run(ctx context.Context) (int, error) {
	for _, path := range []*string{&s.source, &s.satrap, &s.startRing, &s.out, &s.rings} {
		absolute, err := filepath.Abs(*path)
		if err != nil {
			return 0, err
		}
		*path = absolute
	}
	exceptions, err := read(filepath.Join(s.source, "exceptions"))
	if err != nil {
		return 0, err
	}
	begun := time.Now()
	if err := s.build(ctx, exceptions); err != nil {
		return 0, err
	}
	built := time.Since(begun)
	results, err := s.playAll(ctx, exceptions)
	if err != nil {
		return 0, err
	}
	var total count
	for _, r := range results {
		total.add(r.judge(exceptions, s.only))
	}
	if s.only == "" {
		excluded, err := s.excluded(exceptions)
		if err != nil {
			return 0, err
		}
		total.excepted += excluded
	}
	fmt.Printf("etcd's suites: %d tests run, %d passed, %d excepted, %d skipped by themselves, %d faults, built in %.0f s, run in %.0f s\n",
		total.passed+total.faults, total.passed, total.excepted, total.skipped, total.faults,
		built.Seconds(), (time.Since(begun) - built).Seconds())
	return total.faults, nil
}

// build copies the module and compiles each suite.
func (s *settings) build(ctx context.Context, exceptions []exception) error {
	found, err := s.command(ctx, "go", "mod", "download", "-json", module).Output()
	if err != nil {
		return fmt.Errorf("go mod download %s: %w", module, describe(err))
	}
	var downloaded struct{ Dir string }
	if err := json.Unmarshal(found, &downloaded); err != nil {
		return err
	}
	if err := os.RemoveAll(s.tests()); err != nil {
		return err
	}
	if err := os.CopyFS(s.tests(), os.DirFS(downloaded.Dir)); err != nil {
		return err
	}
	if err := s.protectKeys(); err != nil {
		return err
	}
	replaced := map[string]string{}
	for _, name := range []string{"cluster.go", "member.go"} {
		replaced[filepath.Join(s.tests(), "framework/integration", name)] = filepath.Join(s.source, "overlay", name)
	}
	for _, one := range exceptions {
		if one.kind == leftOut {
			// An empty name removes the file.
			replaced[filepath.Join(s.tests(), one.name)] = ""
		}
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replaced})
	if err != nil {
		return err
	}
	requirements, err := os.ReadFile(filepath.Join(s.source, "go.mod"))
	if err != nil {
		return err
	}
	sums, err := os.ReadFile(filepath.Join(s.source, "go.sum"))
	if err != nil {
		return err
	}
	replace := fmt.Appendf(requirements, "\nreplace %s => %s\n", module, s.tests())
	for name, text := range map[string][]byte{"overlay.json": overlay, "go.mod": replace, "go.sum": sums} {
		if err := os.WriteFile(filepath.Join(s.out, name), text, 0o644); err != nil {
			return err
		}
	}
	words := []string{
		"test", "-c", "-mod=readonly", "-tags=satrap_ring,integration", "-o=" + s.binaries(),
		"-modfile=" + filepath.Join(s.out, "go.mod"), "-overlay=" + filepath.Join(s.out, "overlay.json"),
	}
	for _, suite := range suites {
		words = append(words, module+"/"+suite)
	}
	compile := s.command(ctx, "go", words...)
	compile.Stdout, compile.Stderr = os.Stderr, os.Stderr
	if err := os.MkdirAll(s.binaries(), 0o755); err != nil {
		return err
	}
	if err := compile.Run(); err != nil {
		return fmt.Errorf("compile the suites: %w", err)
	}
	return nil
}

// protectKeys hides the private keys of the fixtures from other users: a member takes no others.
func (s *settings) protectKeys() error {
	keys, err := filepath.Glob(filepath.Join(s.tests(), "fixtures", "*.key*"))
	if err != nil {
		return err
	}
	for _, key := range keys {
		if err := os.Chmod(key, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (s *settings) tests() string    { return filepath.Join(s.out, "tests") }
func (s *settings) binaries() string { return filepath.Join(s.out, "bin") + "/" }

// command is one that starts in the folder of the source.
func (s *settings) command(ctx context.Context, name string, words ...string) *exec.Cmd {
	command := exec.CommandContext(ctx, name, words...)
	command.Dir = s.source
	return command
}

// describe adds what a command said to how it ended.
func describe(err error) error {
	if ended, is := errors.AsType[*exec.ExitError](err); is {
		return fmt.Errorf("%w: %s", err, ended.Stderr)
	}
	return err
}

// playAll runs all suites.
func (s *settings) playAll(ctx context.Context, exceptions []exception) ([]*result, error) {
	var results []*result
	var mu sync.Mutex
	var failure error
	turns := make(chan struct{}, together)
	var running sync.WaitGroup
	for _, suite := range suites {
		listed, err := s.command(ctx, s.binary(suite), "-test.list=.").Output()
		if err != nil {
			return nil, fmt.Errorf("%s -test.list: %w", s.binary(suite), describe(err))
		}
		r := newResult(suite, slices.DeleteFunc(strings.Fields(string(listed)), func(name string) bool {
			return strings.HasPrefix(name, "Benchmark")
		}))
		results = append(results, r)
		for part := range slices.Chunk(r.toRun(exceptions, s.only), partTests) {
			running.Go(func() {
				turns <- struct{}{}
				defer func() { <-turns }()
				ended, err := s.play(ctx, suite, part)
				mu.Lock()
				defer mu.Unlock()
				failure = errors.Join(failure, err)
				r.add(ended)
			})
		}
	}
	running.Wait()
	return results, failure
}

func (s *settings) binary(suite string) string { return s.binaries() + filepath.Base(suite) + ".test" }

// play runs some tests of a suite.
func (s *settings) play(ctx context.Context, suite string, tests []string) (*result, error) {
	folder, err := os.MkdirTemp(s.rings, "rings-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(folder)
	ctx, cancel := context.WithTimeout(ctx, partMax+10*time.Second)
	defer cancel()
	program := s.command(ctx, "go", "tool", "test2json", "-p", suite, s.binary(suite), "-test.v=test2json",
		"-test.timeout="+partMax.String(), "-test.run=^("+strings.Join(tests, "|")+")$")
	program.Dir = filepath.Join(s.tests(), suite)
	program.Env = append(os.Environ(), "SATRAP_BINARY="+s.satrap, "SATRAP_START_RING="+s.startRing, "SATRAP_RINGS="+folder)
	// All members that are left are of its group, and end with it.
	program.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	end := func() error { return syscall.Kill(-program.Process.Pid, syscall.SIGKILL) }
	program.Cancel = end
	program.Stderr = os.Stderr
	output, err := program.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := program.Start(); err != nil {
		return nil, err
	}
	r := newResult(suite, tests)
	failure := r.read(output)
	// How it ends is in the events as well.
	_ = program.Wait()
	_ = end()
	return r, failure
}

// excluded is how many tests are in the files that are left out.
func (s *settings) excluded(exceptions []exception) (int, error) {
	tests := 0
	for _, one := range exceptions {
		if one.kind != leftOut {
			continue
		}
		text, err := os.ReadFile(filepath.Join(s.tests(), one.name))
		if errors.Is(err, fs.ErrNotExist) {
			return 0, fmt.Errorf("exceptions has the file %s, which the module has not", one.name)
		} else if err != nil {
			return 0, err
		}
		tests += strings.Count(string(text), "\nfunc Test")
	}
	return tests, nil
}
