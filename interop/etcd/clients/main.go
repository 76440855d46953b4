// Command clients runs etcd's own Go client, and every package that comes with it, on etcd and on
// the ring under test. Each scenario checks what must hold and writes down what it saw; the two
// accounts must be the same, word for word.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"satrap.invalid/interop/etcd/internal/ring"
)

// scenarioMax is how long one scenario may take.
const scenarioMax = 60 * time.Second

// world is what a scenario has.
type world struct {
	context.Context
	*clientv3.Client
	// open makes one more client of the same cluster.
	open func() *clientv3.Client
	// target says where the cluster is, for what needs a connection of its own.
	target ring.Target
	// all are the endpoints of all members; the target has one of them.
	all []string
	// bare is a connection without retries or balancing.
	bare *grpc.ClientConn
	// base is the revision at which both clusters began.
	base int64
	// members can be killed; nil if they cannot.
	members ring.Members
	account []string
	// remarks are printed and not compared.
	remarks []string
	mu      sync.Mutex
	cleanup []func()
}

// saw writes a line into the account.
func (w *world) saw(format string, arguments ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.account = append(w.account, fmt.Sprintf(format, arguments...))
}

// remark keeps something to print that need not be equal.
func (w *world) remark(format string, arguments ...any) {
	w.remarks = append(w.remarks, fmt.Sprintf(format, arguments...))
}

// at is a revision as the account says it: from the begin of the scenario.
func (w *world) at(revision int64) int64 { return revision - w.base }

// broken ends a scenario from deep within.
type broken struct{ error }

// must ends the scenario if there is an error.
func must(err error) {
	if err != nil {
		panic(broken{err})
	}
}

// get is a value that comes with an error.
func get[T any](value T, err error) T {
	must(err)
	return value
}

// hold ends the scenario unless something is true.
func hold(condition bool, format string, arguments ...any) {
	if !condition {
		panic(broken{fmt.Errorf(format, arguments...)})
	}
}

// together runs pieces at the same time and ends the scenario if one of them failed.
func together(pieces ...func()) {
	failures := make(chan error, len(pieces))
	for _, piece := range pieces {
		go func() {
			failures <- caught(piece)
		}()
	}
	var failed error
	for range pieces {
		failed = errors.Join(failed, <-failures)
	}
	must(failed)
}

// caught runs a piece and returns how it failed.
func caught(piece func()) (failure error) {
	defer func() {
		if problem := recover(); problem != nil {
			failed, expected := problem.(broken)
			if !expected {
				panic(problem)
			}
			failure = failed.error
		}
	}()
	piece()
	return nil
}

// scenario is a named piece of client code.
type scenario struct {
	name string
	run  func(*world)
}

func main() {
	var both ring.Both
	both.Register(flag.CommandLine)
	only := flag.String("only", "", "run only scenarios whose name begins with `text`")
	verbose := flag.Bool("verbose", false, "print the accounts")
	flag.Parse()
	equal, err := compare(&both, *only, *verbose)
	if err != nil {
		fmt.Fprintln(os.Stderr, "clients:", err)
		os.Exit(2)
	}
	if !equal {
		os.Exit(1)
	}
}

func compare(both *ring.Both, only string, verbose bool) (bool, error) {
	defer both.Stop()
	if err := both.Start(); err != nil {
		return false, err
	}
	begun := time.Now()
	differences, lines, count := 0, 0, 0
	etcd, satrap, can := both.Members()
	scenarios := all
	if can {
		scenarios = slices.Concat(all, killingScenarios)
	}
	for _, one := range scenarios {
		if !strings.HasPrefix(one.name, only) {
			continue
		}
		start := time.Now()
		a, b, err := playBoth(one, count, both, [2]ring.Members{etcd, satrap})
		if err != nil {
			return false, fmt.Errorf("%s: %w", one.name, err)
		}
		count++
		lines += len(a)
		if verbose {
			fmt.Printf("%s, %.1f s\n  %s\n", one.name, time.Since(start).Seconds(), strings.Join(a, "\n  "))
		}
		if what := firstDifference(a, b); what != "" {
			differences++
			fmt.Printf("DIFFERENCE in %q: %s\nagain: --only %q\n", one.name, what, one.name)
		}
	}
	fmt.Printf("Go client: %d scenarios, %d observations, %d differences, %.0f s\n",
		count, lines, differences, time.Since(begun).Seconds())
	return differences == 0, nil
}

func firstDifference(a, b []string) string {
	for i := range max(len(a), len(b)) {
		left, right := "nothing more", "nothing more"
		if i < len(a) {
			left = a[i]
		}
		if i < len(b) {
			right = b[i]
		}
		if left != right || strings.HasPrefix(left, "FAILED") {
			return fmt.Sprintf("observation %d\n--- etcd\n%s\n--- satrap\n%s", i, left, right)
		}
	}
	return ""
}

// playBoth makes both clusters equal and runs the scenario on both at once, on the member whose turn
// it is.
func playBoth(one scenario, turn int, both *ring.Both, members [2]ring.Members) ([]string, []string, error) {
	var worlds [2]*world
	for i, target := range []ring.Target{both.Etcd, both.Satrap} {
		// Each scenario stays with one member, and they take turns: what a client reads or watches
		// without the log may be older on another member, on etcd as well.
		all := target.Endpoints
		target.Endpoints = []string{all[turn%len(all)]}
		connections, err := target.Dial()
		if err != nil {
			return nil, nil, err
		}
		defer func() {
			for _, connection := range connections {
				_ = connection.Close()
			}
		}()
		worlds[i] = &world{target: target, all: all, bare: connections[0], members: members[i]}
	}
	base, err := ring.Level(worlds[0].bare, worlds[1].bare)
	if err != nil {
		return nil, nil, err
	}
	var running sync.WaitGroup
	for _, w := range worlds {
		w.base = base
		running.Go(func() { w.play(one) })
	}
	running.Wait()
	for _, w := range worlds {
		if len(w.remarks) > 0 {
			fmt.Printf("%s, %s: %s\n", one.name, w.target.Name, strings.Join(w.remarks, ", "))
		}
	}
	return worlds[0].account, worlds[1].account, nil
}

// play runs a scenario; how it failed goes into the account.
func (w *world) play(one scenario) {
	ctx, cancel := context.WithTimeout(context.Background(), scenarioMax)
	w.Context = ctx
	w.open = func() *clientv3.Client {
		client := get(w.target.Client())
		w.cleanup = append(w.cleanup, func() { _ = client.Close() })
		return client
	}
	defer func() {
		cancel()
		for _, undo := range w.cleanup {
			undo()
		}
	}()
	if failure := caught(func() {
		w.Client = w.open()
		one.run(w)
	}); failure != nil {
		w.saw("FAILED: %v", failure)
	}
}

// told is an error as the account says it.
func told(err error) string {
	switch {
	case err == nil:
		return "no error"
	case errors.Is(err, context.Canceled):
		return "canceled"
	case errors.Is(err, context.DeadlineExceeded):
		return "too late"
	default:
		return fmt.Sprintf("%T %v", err, err)
	}
}

// all is every scenario, in the order of the files they are in.
var all = slices.Concat(
	kvScenarios, watchScenarios, concurrencyScenarios, packageScenarios, serviceScenarios, streamScenarios,
	limitScenarios)
