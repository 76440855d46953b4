package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

var watchScenarios = []scenario{
	{"watch options", watchOptions},
	{"watch past and present", watchPastAndPresent},
	{"watch compacted", watchCompacted},
	{"watch large", watchLarge},
	{"watch progress", watchProgress},
	{"watch many", watchMany},
	{"watch cancel", watchCancel},
	{"watch transactions", watchTransactions},
}

// collect reads events until one is about the key that ends it.
func (w *world) collect(watch clientv3.WatchChan, end string) []*clientv3.Event {
	var events []*clientv3.Event
	for response := range watch {
		must(response.Err())
		for _, event := range response.Events {
			if string(event.Kv.Key) == end {
				return events
			}
			events = append(events, event)
		}
	}
	panic(broken{errors.New("the watch ended before " + end)})
}

func (w *world) events(what string, events []*clientv3.Event) {
	for _, event := range events {
		before := "nothing"
		if event.PrevKv != nil {
			before = fmt.Sprintf("%q of %d", event.PrevKv.Value, w.at(event.PrevKv.ModRevision))
		}
		w.saw("%s: %s %q=%q at %d version %d create %v modify %v, before %s", what, event.Type, event.Kv.Key,
			event.Kv.Value, w.at(event.Kv.ModRevision), event.Kv.Version, event.IsCreate(), event.IsModify(), before)
	}
}

func watchOptions(w *world) {
	get(w.Put(w, "a", "before"))
	begin := clientv3.WithRev(w.base + 1)
	watches := map[string]clientv3.WatchChan{
		"plain":      w.Watch(w, "", clientv3.WithPrefix(), begin),
		"previous":   w.Watch(w, "", clientv3.WithPrefix(), begin, clientv3.WithPrevKV()),
		"no puts":    w.Watch(w, "", clientv3.WithFromKey(), begin, clientv3.WithFilterPut(), clientv3.WithPrevKV()),
		"no deletes": w.Watch(w, "", clientv3.WithFromKey(), begin, clientv3.WithFilterDelete()),
		"range":      w.Watch(w, "a", clientv3.WithRange("c"), begin),
		"one key":    w.Watch(w, "b", begin),
		"later":      w.Watch(w, "", clientv3.WithPrefix(), clientv3.WithRev(w.base+5)),
	}
	get(w.Put(w, "a", "1"))
	get(w.Put(w, "b", "2"))
	get(w.Delete(w, "a"))
	get(w.Put(w, "c", "3"))
	get(w.Put(w, "b", "4"))
	get(w.Delete(w, "", clientv3.WithPrefix()))
	// Whatever a watch filters, one of these ends it.
	get(w.Put(w, "b", "end"))
	get(w.Delete(w, "b"))
	get(w.Put(w, "zz", "end"))
	get(w.Delete(w, "zz"))
	for _, name := range []string{"plain", "previous", "no puts", "no deletes", "later"} {
		w.events(name, w.collect(watches[name], "zz"))
	}
	for _, name := range []string{"range", "one key"} {
		var events []*clientv3.Event
		for response := range watches[name] {
			must(response.Err())
			events = append(events, response.Events...)
			if last := events[len(events)-1]; w.at(last.Kv.ModRevision) == 9 {
				break
			}
		}
		w.events(name, events)
	}
}

// watchPastAndPresent begins in the past while others write, and must miss and repeat nothing.
func watchPastAndPresent(w *world) {
	const writers, each = 4, 250
	var pieces []func()
	for writer := range writers {
		pieces = append(pieces, func() {
			for i := range each {
				get(w.Put(w, fmt.Sprintf("w/%d", writer), fmt.Sprint(i)))
			}
		})
	}
	together(append(pieces, func() { w.watchWriters(writers, each) })...)
}

// watchWriters watches from the begin until each writer has written all it will.
func (w *world) watchWriters(writers, each int) {
	for begin := range 3 {
		next, revision := map[string]int{}, int64(0)
		for response := range w.open().Watch(w, "w/", clientv3.WithPrefix(), clientv3.WithRev(w.base+1)) {
			must(response.Err())
			done := 0
			for _, event := range response.Events {
				key := string(event.Kv.Key)
				hold(string(event.Kv.Value) == fmt.Sprint(next[key]), "watch %d: %s is %s, not %d", begin, key, event.Kv.Value, next[key])
				hold(event.Kv.ModRevision > revision, "watch %d: revision %d after %d", begin, event.Kv.ModRevision, revision)
				next[key], revision = next[key]+1, event.Kv.ModRevision
			}
			for _, count := range next {
				if count == each {
					done++
				}
			}
			if done == writers {
				break
			}
		}
		w.saw("watch %d saw all, up to %d", begin, w.at(revision))
	}
}

func watchCompacted(w *world) {
	for i := range 10 {
		get(w.Put(w, "k", fmt.Sprint(i)))
	}
	get(w.Compact(w, w.base+6))
	for _, begin := range []int64{1, 5, 6, 7} {
		ctx, cancel := context.WithCancel(w)
		response := <-w.Watch(ctx, "k", clientv3.WithRev(w.base+begin))
		w.saw("from %d: %s, compacted %d, canceled %v, %d events", begin, told(response.Err()),
			w.at(max(w.base, response.CompactRevision)), response.Canceled, len(response.Events))
		hold((begin < 6) == errors.Is(response.Err(), rpctypes.ErrCompacted), "from %d: %v", begin, response.Err())
		cancel()
	}
}

// watchLarge has one revision larger than one message may be.
func watchLarge(w *world) {
	value := strings.Repeat("v", 400_000)
	for round := range 3 {
		for i := range 4 {
			get(w.Put(w, fmt.Sprintf("large/%d", i), fmt.Sprint(round)+value))
		}
	}
	get(w.Delete(w, "large/", clientv3.WithPrefix()))
	watch := w.Watch(w, "large/", clientv3.WithPrefix(), clientv3.WithRev(w.base+1), clientv3.WithPrevKV(), clientv3.WithFragment())
	count, bytes := 0, 0
	for response := range watch {
		must(response.Err())
		for _, event := range response.Events {
			count++
			bytes += len(event.Kv.Value)
			if event.PrevKv != nil {
				bytes += len(event.PrevKv.Value)
			}
		}
		if count == 16 {
			break
		}
	}
	w.saw("%d events of %d bytes", count, bytes)
}

func watchProgress(w *world) {
	get(w.Put(w, "elsewhere", "1"))
	ctx, cancel := context.WithCancel(w)
	defer cancel()
	watch := w.Watch(ctx, "quiet", clientv3.WithCreatedNotify())
	created := <-watch
	w.saw("created %v at %d", created.Created, w.at(created.Header.Revision))
	get(w.Put(w, "elsewhere", "2"))
	must(w.RequestProgress(ctx))
	progress := <-watch
	w.saw("progress %v at %d", progress.IsProgressNotify(), w.at(progress.Header.Revision))
	get(w.Put(w, "quiet", "no more"))
	w.events("then", (<-watch).Events)
}

// watchMany puts many watches on one stream, each on its own key.
func watchMany(w *world) {
	const watches = 200
	var channels []clientv3.WatchChan
	for i := range watches {
		channels = append(channels, w.Watch(w, fmt.Sprintf("many/%03d", i), clientv3.WithCreatedNotify()))
	}
	for _, channel := range channels {
		hold((<-channel).Created, "a watch was not made")
	}
	for i := range watches {
		get(w.Put(w, fmt.Sprintf("many/%03d", i), fmt.Sprint(i)))
	}
	for i, channel := range channels {
		event := (<-channel).Events[0]
		hold(string(event.Kv.Value) == fmt.Sprint(i), "watch %d saw %s", i, event.Kv.Value)
	}
	w.saw("%d watches saw one event each", watches)
}

func watchCancel(w *world) {
	ctx, cancel := context.WithCancel(w)
	watch := w.Watch(ctx, "k", clientv3.WithCreatedNotify())
	<-watch
	cancel()
	for response := range watch {
		w.saw("a last response: canceled %v", response.Canceled)
	}
	w.saw("closed")
	response := <-w.Watch(w, "z", clientv3.WithRange("a"))
	w.saw("an empty range: canceled %v, %s", response.Canceled, told(response.Err()))
	other := w.open()
	watch = other.Watch(clientv3.WithRequireLeader(w), "k", clientv3.WithCreatedNotify())
	hold((<-watch).Created, "no watch that requires a leader")
	must(other.Watcher.Close())
	_, open := <-watch
	w.saw("open after the watcher was closed: %v", open)
}

// watchTransactions sees what one transaction did as one response, in the order it did it.
func watchTransactions(w *world) {
	watch := w.Watch(w, "t/", clientv3.WithPrefix(), clientv3.WithRev(w.base+1), clientv3.WithPrevKV())
	get(w.Txn(w).Then(clientv3.OpPut("t/b", "1"), clientv3.OpPut("t/a", "1")).Commit())
	get(w.Txn(w).Then(clientv3.OpDelete("t/b"), clientv3.OpPut("t/c", "2"), clientv3.OpPut("t/a", "2")).Commit())
	get(w.Txn(w).Then(clientv3.OpPut("t/a", "3"), clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpPut("t/d", "3")}, nil)).Commit())
	seen := 0
	for response := range watch {
		must(response.Err())
		revision := response.Events[0].Kv.ModRevision
		for _, event := range response.Events {
			if event.Kv.ModRevision != revision {
				seen++
				revision = event.Kv.ModRevision
			}
		}
		seen++
		w.events("seen", response.Events)
		if seen == 3 {
			return
		}
	}
}
