package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// killingScenarios need clusters whose members can be killed.
var killingScenarios = []scenario{
	{"leader killed", leaderKilled},
	{"majority lost", majorityLost},
}

const (
	writers = 4
	// writes is how many one writer does while one leader is killed.
	writes = 60
	kills  = 2
	// putMax is how long one put may take before it is tried again.
	putMax = 5 * time.Second
)

// leaderKilled kills the leader, twice, under clients of all three members: a watch, a lock, an
// election, and writers that try again what failed. No client is closed or opened.
func leaderKilled(w *world) {
	watch := w.everywhere().Watch(w, "k/", clientv3.WithPrefix(), clientv3.WithRev(w.base+1))
	holder, next := w.sessionEverywhere(), w.sessionEverywhere()
	lock, office := concurrency.NewMutex(holder, "lock"), concurrency.NewElection(holder, "office")
	must(lock.Lock(w))
	must(office.Campaign(w, "first"))
	locked, won := make(chan error, 1), make(chan error, 1)
	nextOffice := concurrency.NewElection(next, "office")
	go func() { locked <- concurrency.NewMutex(next, "lock").Lock(w) }()
	go func() { won <- nextOffice.Campaign(w, "second") }()

	client := w.everywhere()
	for round := range kills {
		w.killUnderWrites(client, round)
	}
	get(client.Put(w, "k/end", ""))
	w.judgeWrites(client, w.collect(watch, "k/end"))

	select {
	case <-holder.Done():
		w.saw("the session was lost")
	case err := <-locked:
		w.saw("another has the lock too: %s", told(err))
	case err := <-won:
		w.saw("another was elected too: %s", told(err))
	default:
		w.saw("the lock and the office are still held by one")
	}
	owner := get(client.Txn(w).If(lock.IsOwner()).Then(clientv3.OpPut("guarded", "x")).Commit())
	leader := get(nextOffice.Leader(w))
	w.saw("the owner writes: %v, elected is %s", owner.Succeeded, leader.Kvs[0].Value)
	must(lock.Unlock(w))
	must(<-locked)
	must(office.Resign(w))
	must(<-won)
	w.saw("then elected is %s", get(nextOffice.Leader(w)).Kvs[0].Value)
}

const (
	// lostTTL is that of a lease, in seconds, and its client renews it after a third of it.
	lostTTL = 24
	// lostFor is how long a majority is lost: until after a renewal that it would have to confirm.
	lostFor = 10 * time.Second
)

// majorityLost kills all members but the one that a client renews its lease at, for longer than until the next
// renewal and not until the lease ends.
func majorityLost(w *world) {
	client := w.only(w.all[0])
	lease := get(client.Grant(w, lostTTL)).ID
	get(client.Put(w, "kept", "x", clientv3.WithLease(lease)))
	answers := get(client.KeepAlive(w, lease))
	hold(<-answers != nil, "the lease was lost before anything happened")
	for _, endpoint := range w.all[1:] {
		must(w.members.Kill(endpoint))
	}
	ctx, cancel := context.WithTimeout(w, lostFor)
	defer cancel()
	_, err := client.Put(ctx, "lost", "x")
	hold(err != nil, "one member of three acknowledged a write")
	<-ctx.Done()
	hold(len(answers) == 0, "one member of three renewed a lease")
	for _, endpoint := range w.all[1:] {
		must(w.members.Start(endpoint))
	}
	answer := <-answers
	hold(answer != nil, "the lease was lost although a majority was back")
	w.saw("renewed for %d", answer.TTL)
	for _, endpoint := range w.all {
		w.answers(endpoint)
	}
	w.saw("kept %q", get(client.Get(w, "kept")).Kvs[0].Value)
}

// everywhere is one more client, of all members.
func (w *world) everywhere() *clientv3.Client { return w.only(w.all...) }

// only is one more client, of these members.
func (w *world) only(endpoints ...string) *clientv3.Client {
	target := w.target
	target.Endpoints = endpoints
	client := get(target.Client())
	w.cleanup = append(w.cleanup, func() { _ = client.Close() })
	return client
}

func (w *world) sessionEverywhere() *concurrency.Session {
	s := get(concurrency.NewSession(w.everywhere(), concurrency.WithTTL(30)))
	w.cleanup = append([]func(){func() { _ = s.Close() }}, w.cleanup...)
	return s
}

// killUnderWrites kills the leader in the middle of many writes, and starts it again a third of
// them later.
func (w *world) killUnderWrites(client *clientv3.Client, round int) {
	acknowledged := make(chan struct{}, writers*writes)
	var pieces []func()
	for writer := range writers {
		pieces = append(pieces, func() {
			for i := range writes {
				w.putForSure(client, fmt.Sprintf("k/%d/%d/%d", round, writer, i))
				acknowledged <- struct{}{}
			}
		})
	}
	var pause time.Duration
	pieces = append(pieces, func() {
		last := time.Now()
		await := func(count int) {
			for range count {
				select {
				case <-acknowledged:
				case <-w.Done():
					must(w.Err())
				}
				pause = max(pause, time.Since(last))
				last = time.Now()
			}
		}
		await(writers * writes / 3)
		leader := w.leader(client)
		must(w.members.Kill(leader))
		await(writers * writes / 3)
		must(w.members.Start(leader))
	})
	together(pieces...)
	w.remark("no write for %.1f s", pause.Seconds())
	for _, endpoint := range w.all {
		w.answers(endpoint)
	}
}

// putForSure writes a key until it is acknowledged.
func (w *world) putForSure(client *clientv3.Client, key string) {
	for {
		ctx, cancel := context.WithTimeout(w, putMax)
		_, err := client.Put(ctx, key, key)
		cancel()
		if err == nil {
			return
		}
		var told rpctypes.EtcdError
		passes := errors.Is(err, context.DeadlineExceeded) || status.Code(err) == codes.Unavailable ||
			(errors.As(err, &told) && told.Code() == codes.Unavailable)
		hold(passes && w.Err() == nil, "put %s: %v", key, err)
	}
}

// leader returns the endpoint of the leader.
func (w *world) leader(client *clientv3.Client) string {
	for {
		for _, endpoint := range w.all {
			state := get(client.Status(w, endpoint))
			if state.Leader == state.Header.MemberId {
				return endpoint
			}
		}
	}
}

// answers waits until a member serves reads that a majority confirms.
func (w *world) answers(endpoint string) {
	target := w.target
	target.Endpoints = []string{endpoint}
	client := get(target.Client())
	defer client.Close()
	for {
		_, err := client.Get(w, "x")
		if err == nil {
			return
		}
		must(w.Err())
	}
}

// judgeWrites compares what a watch brought with what there is.
func (w *world) judgeWrites(client *clientv3.Client, events []*clientv3.Event) {
	last, count := map[string]*clientv3.Event{}, map[string]int64{}
	var before int64
	for _, event := range events {
		key := string(event.Kv.Key)
		hold(event.Kv.ModRevision > before, "%s came twice or late, at %d", key, event.Kv.ModRevision)
		before = event.Kv.ModRevision
		last[key] = event
		count[key]++
	}
	kvs := get(client.Get(w, "k/", clientv3.WithPrefix())).Kvs
	for _, kv := range kvs {
		key := string(kv.Key)
		if key == "k/end" {
			continue
		}
		// A write that failed and was tried again may have been done twice, and then is seen twice.
		hold(count[key] == kv.Version, "%s was watched %d times and has version %d", key, count[key], kv.Version)
		hold(last[key].Kv.ModRevision == kv.ModRevision && string(kv.Value) == key, "%s is %v", key, kv)
	}
	w.saw("%d keys, and the watch brought every write of them once and in order", len(kvs)-1)
}
