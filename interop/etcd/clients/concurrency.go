package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	recipe "go.etcd.io/etcd/client/v3/experimental/recipes"
)

var concurrencyScenarios = []scenario{
	{"mutex", mutex},
	{"mutex lost", mutexLost},
	{"session", session},
	{"election", election},
	{"election handover", electionHandover},
	{"stm transfers", stmTransfers},
	{"stm levels", stmLevels},
	{"recipes", recipes},
}

func (w *world) session(options ...concurrency.SessionOption) *concurrency.Session {
	s := get(concurrency.NewSession(w.open(), options...))
	w.cleanup = append([]func(){func() { _ = s.Close() }}, w.cleanup...)
	return s
}

// mutex has several holders add to one number, reading and writing it apart.
func mutex(w *world) {
	const holders, each = 4, 10
	get(w.Put(w, "number", "0"))
	var sessions []*concurrency.Session
	for range holders {
		sessions = append(sessions, w.session())
	}
	var pieces []func()
	for _, s := range sessions {
		pieces = append(pieces, func() {
			lock := concurrency.NewMutex(s, "lock")
			for range each {
				must(lock.Lock(w))
				now := get(strconv.Atoi(string(get(w.Get(w, "number")).Kvs[0].Value)))
				response := get(w.Txn(w).If(lock.IsOwner()).Then(clientv3.OpPut("number", fmt.Sprint(now+1))).Commit())
				hold(response.Succeeded, "the holder is not the owner")
				must(lock.Unlock(w))
			}
		})
	}
	together(pieces...)
	w.saw("number %s", get(w.Get(w, "number")).Kvs[0].Value)
	one, two := concurrency.NewMutex(sessions[0], "try"), concurrency.NewMutex(sessions[1], "try")
	must(one.TryLock(w))
	err := two.TryLock(w)
	w.saw("a second: %s", told(err))
	hold(errors.Is(err, concurrency.ErrLocked), "locked twice")
	ctx, cancel := context.WithTimeout(w, 300*time.Millisecond)
	defer cancel()
	w.saw("waiting: %s", told(two.Lock(ctx)))
	must(one.Unlock(w))
	must(two.Lock(w))
	w.saw("%d keys of the lock", get(w.Get(w, "try/", clientv3.WithPrefix(), clientv3.WithCountOnly())).Count)
}

// mutexLost takes a holder's lease away: it learns of it, and the next one gets the lock.
func mutexLost(w *world) {
	holder, next := w.session(concurrency.WithTTL(5)), w.session()
	lost, waiting := concurrency.NewMutex(holder, "lock"), concurrency.NewMutex(next, "lock")
	must(lost.Lock(w))
	locked := make(chan error, 1)
	go func() { locked <- waiting.Lock(w) }()
	get(w.Revoke(w, holder.Lease()))
	must(<-locked)
	w.saw("the next one has the lock")
	<-holder.Done()
	w.saw("the session is done: %s", told(holder.Ctx().Err()))
	response := get(w.Txn(w).If(lost.IsOwner()).Then(clientv3.OpPut("harm", "done")).Commit())
	w.saw("the former holder writes: %v", response.Succeeded)
	_, err := concurrency.NewSession(w.Client, concurrency.WithLease(holder.Lease()))
	w.saw("a session of a lost lease: %s", told(err))
}

func session(w *world) {
	s := w.session(concurrency.WithTTL(2))
	get(w.Put(w, "mine", "x", clientv3.WithLease(s.Lease())))
	// An orphan is not kept any more, but lives on until its time is over.
	s.Orphan()
	<-s.Done()
	w.kvs("orphaned", get(w.Get(w, "mine")))
	for response := range w.Watch(w, "mine", clientv3.WithRev(w.base+2)) {
		must(response.Err())
		w.saw("%s", response.Events[0].Type)
		break
	}
	closed := w.session()
	get(w.Put(w, "yours", "x", clientv3.WithLease(closed.Lease())))
	must(closed.Close())
	w.kvs("closed", get(w.Get(w, "yours")))
}

func election(w *world) {
	first, second := concurrency.NewElection(w.session(), "office"), concurrency.NewElection(w.session(), "office")
	ctx, cancel := context.WithCancel(w)
	defer cancel()
	_, err := first.Leader(w)
	w.saw("nobody: %s", told(err))
	hold(errors.Is(err, concurrency.ErrElectionNoLeader), "a leader without an election")
	observed := concurrency.NewElection(w.session(), "office").Observe(ctx)
	must(first.Campaign(w, "first"))
	w.saw("observed %s", (<-observed).Kvs[0].Value)
	won := make(chan error, 1)
	go func() { won <- second.Campaign(w, "second") }()
	must(first.Proclaim(w, "first again"))
	w.saw("observed %s", (<-observed).Kvs[0].Value)
	leader := get(second.Leader(w))
	w.saw("leader %s, its key is %v", leader.Kvs[0].Value, string(leader.Kvs[0].Key) == first.Key())
	must(first.Resign(w))
	must(<-won)
	w.saw("observed %s", (<-observed).Kvs[0].Value)
	w.saw("a proclamation of the former: %s", told(first.Proclaim(w, "too late")))
	s := w.session(concurrency.WithLease(clientv3.LeaseID(get(second.Leader(w)).Kvs[0].Lease)))
	resumed := concurrency.ResumeElection(s, "office", second.Key(), second.Rev())
	must(resumed.Proclaim(w, "resumed"))
	w.saw("observed %s", (<-observed).Kvs[0].Value)
}

// electionHandover elects many in turn; at no time two.
func electionHandover(w *world) {
	const candidates = 6
	var mu sync.Mutex
	leading, order := 0, 0
	var pieces []func()
	for i := range candidates {
		e := concurrency.NewElection(w.session(), "turns")
		pieces = append(pieces, func() {
			must(e.Campaign(w, fmt.Sprint(i)))
			mu.Lock()
			leading++
			order++
			hold(leading == 1, "%d leaders", leading)
			mu.Unlock()
			get(w.Get(w, "turns", clientv3.WithPrefix()))
			mu.Lock()
			leading--
			mu.Unlock()
			must(e.Resign(w))
		})
	}
	together(pieces...)
	w.saw("%d were elected, %d keys left", order, get(w.Get(w, "turns", clientv3.WithPrefix())).Count)
}

// stmTransfers moves money between accounts at each isolation that keeps it from being lost.
func stmTransfers(w *world) {
	const accounts, movers, each, wealth = 5, 4, 15, 100
	for _, level := range []concurrency.Isolation{
		concurrency.SerializableSnapshot, concurrency.Serializable, concurrency.RepeatableReads,
	} {
		for i := range accounts {
			get(w.Put(w, fmt.Sprint("account/", i), fmt.Sprint(wealth)))
		}
		var pieces []func()
		for mover := range movers {
			pieces = append(pieces, func() {
				for i := range each {
					from, to := fmt.Sprint("account/", (mover+i)%accounts), fmt.Sprint("account/", (mover+2*i+1)%accounts)
					get(concurrency.NewSTM(w.Client, func(s concurrency.STM) error {
						return transfer(s, from, to, i)
					}, concurrency.WithIsolation(level), concurrency.WithAbortContext(w)))
				}
			})
		}
		together(pieces...)
		total := 0
		for _, kv := range get(w.Get(w, "account/", clientv3.WithPrefix())).Kvs {
			total += get(strconv.Atoi(string(kv.Value)))
		}
		w.saw("level %d: %d in all", level, total)
		hold(total == accounts*wealth, "level %d: %d of %d left", level, total, accounts*wealth)
	}
}

func transfer(s concurrency.STM, from, to string, amount int) error {
	if from == to {
		return nil
	}
	have, err := strconv.Atoi(s.Get(from))
	if err != nil {
		return err
	}
	has, err := strconv.Atoi(s.Get(to))
	if err != nil {
		return err
	}
	s.Put(from, fmt.Sprint(have-amount))
	s.Put(to, fmt.Sprint(has+amount))
	return nil
}

// stmLevels interferes with a transaction in its middle: how often it runs tells its level.
func stmLevels(w *world) {
	for _, level := range []concurrency.Isolation{
		concurrency.SerializableSnapshot, concurrency.Serializable,
		concurrency.RepeatableReads, concurrency.ReadCommitted,
	} {
		get(w.Put(w, "x", "0"))
		get(w.Put(w, "y", "0"))
		runs := 0
		response := get(concurrency.NewSTM(w.Client, func(s concurrency.STM) error {
			runs++
			before := s.Get("x")
			if runs == 1 {
				get(w.Put(w, "x", "interfered"))
				get(w.Put(w, "y", "interfered"))
			}
			w.saw("level %d run %d: x %s then %s, y %s", level, runs, before, s.Get("x"), s.Get("y"))
			s.Put("z", fmt.Sprint(level))
			s.Del("gone")
			return nil
		}, concurrency.WithIsolation(level), concurrency.WithAbortContext(w), concurrency.WithPrefetch("x")))
		w.saw("level %d: %d runs, committed at %d", level, runs, w.at(response.Header.Revision))
	}
	_, err := concurrency.NewSTM(w.Client, func(concurrency.STM) error { return errors.New("no") })
	w.saw("refused: %s", told(err))
}

// recipes runs what the client's recipes have: queues, barriers, and a lock for many readers.
func recipes(w *world) {
	queue, ranked := recipe.NewQueue(w.Client, "queue"), recipe.NewPriorityQueue(w.Client, "ranked")
	for i := range 5 {
		must(queue.Enqueue(fmt.Sprint("item ", i)))
		must(ranked.Enqueue(fmt.Sprint("rank ", i), uint16(9-i)))
	}
	for range 5 {
		w.saw("%s, %s", get(queue.Dequeue()), get(ranked.Dequeue()))
	}
	barrier := recipe.NewBarrier(w.Client, "barrier")
	must(barrier.Hold())
	w.saw("held twice: %s", told(barrier.Hold()))
	passed := make(chan error, 1)
	waiting := recipe.NewBarrier(w.open(), "barrier")
	go func() { passed <- waiting.Wait() }()
	must(barrier.Release())
	must(<-passed)
	w.saw("passed the barrier")
	var pieces []func()
	for range 3 {
		both := recipe.NewDoubleBarrier(w.session(), "double", 3)
		pieces = append(pieces, func() {
			must(both.Enter())
			must(both.Leave())
		})
	}
	together(pieces...)
	w.saw("three entered and left together")
	reader, second, writer := recipe.NewRWMutex(w.session(), "rw"), recipe.NewRWMutex(w.session(), "rw"), recipe.NewRWMutex(w.session(), "rw")
	must(reader.RLock())
	must(second.RLock())
	written := make(chan error, 1)
	go func() { written <- writer.Lock() }()
	must(reader.RUnlock())
	must(second.RUnlock())
	must(<-written)
	must(writer.Unlock())
	w.saw("a writer after two readers")
}
