package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

var kvScenarios = []scenario{
	{"kv basics", kvBasics},
	{"kv pages", kvPages},
	{"kv errors", kvErrors},
	{"kv transactions", kvTransactions},
	{"kv compaction", kvCompaction},
	{"lease life", leaseLife},
	{"lease expiry", leaseExpiry},
	{"lease keep alive", leaseKeepAlive},
}

func (w *world) kvs(what string, response *clientv3.GetResponse) {
	for _, kv := range response.Kvs {
		w.saw("%s %q=%q create %d mod %d version %d", what, kv.Key, kv.Value,
			w.at(kv.CreateRevision), w.at(kv.ModRevision), kv.Version)
	}
	w.saw("%s count %d more %v at %d", what, response.Count, response.More, w.at(response.Header.Revision))
}

func kvBasics(w *world) {
	for i := range 20 {
		w.saw("put at %d", w.at(get(w.Put(w, fmt.Sprintf("k/%02d", i%12), fmt.Sprint(i))).Header.Revision))
	}
	w.kvs("all", get(w.Get(w, "k/", clientv3.WithPrefix())))
	w.kvs("first", get(w.Get(w, "k/", clientv3.WithFirstKey()...)))
	w.kvs("last", get(w.Get(w, "k/", clientv3.WithLastKey()...)))
	w.kvs("first made", get(w.Get(w, "k/", clientv3.WithFirstCreate()...)))
	w.kvs("last made", get(w.Get(w, "k/", clientv3.WithLastCreate()...)))
	w.kvs("first changed", get(w.Get(w, "k/", clientv3.WithFirstRev()...)))
	w.kvs("last changed", get(w.Get(w, "k/", clientv3.WithLastRev()...)))
	w.kvs("old", get(w.Get(w, "k/", clientv3.WithPrefix(), clientv3.WithRev(w.base+7))))
	w.kvs("local", get(w.Get(w, "k/01", clientv3.WithSerializable())))
	w.kvs("count", get(w.Get(w, "k/", clientv3.WithPrefix(), clientv3.WithCountOnly())))
	deleted := get(w.Delete(w, "k/", clientv3.WithRange("k/05"), clientv3.WithPrevKV()))
	w.saw("deleted %d, %d before, at %d", deleted.Deleted, len(deleted.PrevKvs), w.at(deleted.Header.Revision))
	w.kvs("rest", get(w.Get(w, "k/", clientv3.WithFromKey(), clientv3.WithKeysOnly())))
}

// kvPages reads many keys page by page, all at one revision, while others are written.
func kvPages(w *world) {
	const keys, page = 3000, 250
	for i := 0; i < keys; i += 100 {
		var ops []clientv3.Op
		for j := range 100 {
			ops = append(ops, clientv3.OpPut(fmt.Sprintf("page/%05d", i+j), strings.Repeat("v", 50)))
		}
		get(w.Txn(w).Then(ops...).Commit())
	}
	read, next, revision := 0, "page/", int64(0)
	end := clientv3.GetPrefixRangeEnd("page/")
	for {
		response := get(w.Get(w, next, clientv3.WithRange(end), clientv3.WithLimit(page), clientv3.WithRev(revision)))
		if revision == 0 {
			revision = response.Header.Revision
		}
		read += len(response.Kvs)
		w.saw("page of %d, %d in all, more %v", len(response.Kvs), response.Count, response.More)
		if !response.More {
			break
		}
		next = string(response.Kvs[len(response.Kvs)-1].Key) + "\x00"
		get(w.Put(w, fmt.Sprintf("page/%05d-later", read), "x"))
	}
	hold(read == keys, "read %d of %d keys", read, keys)
}

// kvErrors checks that the client knows the errors for what they are.
func kvErrors(w *world) {
	check := func(name string, want, err error) {
		w.saw("%s: %s", name, told(err))
		hold(errors.Is(err, want), "%s: want %v, got %v", name, want, err)
	}
	_, err := w.Put(w, "", "x")
	check("empty key", rpctypes.ErrEmptyKey, err)
	_, err = w.Get(w, "k", clientv3.WithRev(w.base+1000))
	check("future", rpctypes.ErrFutureRev, err)
	_, err = w.Put(w, "k", "", clientv3.WithLease(4711))
	check("no lease", rpctypes.ErrLeaseNotFound, err)
	_, err = w.Put(w, "k", "", clientv3.WithIgnoreValue())
	check("no key", rpctypes.ErrKeyNotFound, err)
	_, err = w.Txn(w).Then(clientv3.OpPut("k", "1"), clientv3.OpPut("k", "2")).Commit()
	check("twice", rpctypes.ErrDuplicateKey, err)
	var ops []clientv3.Op
	for i := range 129 {
		ops = append(ops, clientv3.OpPut(fmt.Sprint(i), ""))
	}
	_, err = w.Txn(w).Then(ops...).Commit()
	check("too many", rpctypes.ErrTooManyOps, err)
	_, err = w.Put(w, "k", strings.Repeat("x", 1_600_000))
	check("too large", rpctypes.ErrRequestTooLarge, err)
	_, err = w.Revoke(w, 4711)
	check("no lease to revoke", rpctypes.ErrLeaseNotFound, err)
	_, err = w.KeepAliveOnce(w, 4711)
	check("no lease to keep", rpctypes.ErrLeaseNotFound, err)
	_, err = w.MemberRemove(w, 4711)
	check("no member", rpctypes.ErrMemberNotFound, err)
	_, err = w.Compact(w, w.base+1000)
	check("compact the future", rpctypes.ErrFutureRev, err)
	_, err = w.AuthEnable(w)
	check("no root", rpctypes.ErrRootUserNotExist, err)
}

func kvTransactions(w *world) {
	get(w.Put(w, "balance", "10"))
	for range 3 {
		response := get(w.Txn(w).
			If(clientv3.Compare(clientv3.Value("balance"), "=", "10"), clientv3.Compare(clientv3.Version("balance"), "<", 3)).
			Then(clientv3.OpPut("balance", "9"), clientv3.OpTxn(
				[]clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision("note"), "=", 0)},
				[]clientv3.Op{clientv3.OpPut("note", "made"), clientv3.OpGet("balance")},
				[]clientv3.Op{clientv3.OpGet("note")})).
			Else(clientv3.OpGet("", clientv3.WithPrefix()), clientv3.OpDelete("note", clientv3.WithPrevKV())).
			Commit())
		w.saw("succeeded %v at %d: %d answers", response.Succeeded, w.at(response.Header.Revision), len(response.Responses))
	}
	response := get(w.Txn(w).
		If(clientv3.Compare(clientv3.Value("b").WithPrefix(), "=", "9"), clientv3.Compare(clientv3.ModRevision("none"), "=", 0)).
		Then(clientv3.OpDelete("b", clientv3.WithPrefix())).Commit())
	w.saw("whole range compared: %v, deleted %d", response.Succeeded, response.Responses[0].GetResponseDeleteRange().Deleted)
}

func kvCompaction(w *world) {
	for i := range 10 {
		get(w.Put(w, "k", fmt.Sprint(i)))
	}
	get(w.Compact(w, w.base+5, clientv3.WithCompactPhysical()))
	for _, revision := range []int64{4, 5, 10} {
		response, err := w.Get(w, "k", clientv3.WithRev(w.base+revision))
		w.saw("at %d: %s", revision, told(err))
		if err == nil {
			w.kvs("then", response)
		}
	}
	_, err := w.Compact(w, w.base+5)
	w.saw("again: %s", told(err))
	hold(errors.Is(err, rpctypes.ErrCompacted), "a second compaction answered %v", err)
}

func leaseLife(w *world) {
	grant := get(w.Grant(w, 100))
	w.saw("granted for %d", grant.TTL)
	for i := range 5 {
		get(w.Put(w, fmt.Sprint("leased/", i), "x", clientv3.WithLease(grant.ID)))
	}
	life := get(w.TimeToLive(w, grant.ID, clientv3.WithAttachedKeys()))
	w.saw("granted %d, %d keys, left enough %v", life.GrantedTTL, len(life.Keys), life.TTL > 90)
	get(w.Put(w, "leased/0", "free"))
	life = get(w.TimeToLive(w, grant.ID, clientv3.WithAttachedKeys()))
	w.saw("%d keys after one was set free", len(life.Keys))
	get(w.Put(w, "leased/1", "kept", clientv3.WithIgnoreLease()))
	hold(get(w.Leases(w)).Leases[0].ID == grant.ID, "the lease is not listed")
	revoked := get(w.Revoke(w, grant.ID))
	w.saw("revoked at %d", w.at(revoked.Header.Revision))
	w.kvs("after", get(w.Get(w, "leased/", clientv3.WithPrefix())))
	life = get(w.TimeToLive(w, grant.ID))
	w.saw("ttl %d granted %d", life.TTL, life.GrantedTTL)
}

// leaseExpiry lets leases run out. Each takes its keys with it in one revision, in order.
func leaseExpiry(w *world) {
	watch := w.Watch(w, "mortal/", clientv3.WithPrefix(), clientv3.WithRev(w.base+1), clientv3.WithPrevKV())
	for i, ttl := range []int64{2, 5, 8} {
		grant := get(w.Grant(w, ttl))
		for j := range 3 {
			get(w.Put(w, fmt.Sprintf("mortal/%d/%d", i, j), "x", clientv3.WithLease(grant.ID)))
		}
	}
	begun := time.Now()
	deleted := map[string]int64{}
	for response := range watch {
		must(response.Err())
		for _, event := range response.Events {
			if event.Type == clientv3.EventTypeDelete {
				deleted[string(event.Kv.Key)] = event.Kv.ModRevision
				hold(string(event.PrevKv.Value) == "x", "the event does not say what was")
			}
		}
		if len(deleted) == 9 {
			break
		}
	}
	took := time.Since(begun)
	hold(took > 7*time.Second && took < 20*time.Second, "leases of 8 s ran out after %s", took)
	for i := range 3 {
		for j := range 3 {
			w.saw("%d/%d deleted at %d", i, j, w.at(deleted[fmt.Sprintf("mortal/%d/%d", i, j)]))
		}
	}
}

// leaseKeepAlive keeps a lease of two seconds for five, stops, and sees it end.
func leaseKeepAlive(w *world) {
	grant := get(w.Grant(w, 2))
	get(w.Put(w, "kept", "x", clientv3.WithLease(grant.ID)))
	keeper := w.open()
	answers := get(keeper.KeepAlive(w, grant.ID))
	// Two holders of one stream share it.
	other := get(keeper.KeepAlive(w, grant.ID))
	end := time.After(5 * time.Second)
	renewed := 0
	for kept := true; kept; {
		select {
		case answer := <-answers:
			hold(answer != nil, "the lease was lost while it was kept")
			w.sawOnce(renewed, "renewed for %d", answer.TTL)
			renewed++
		case <-other:
		case <-end:
			kept = false
		}
	}
	hold(renewed > 3, "renewed only %d times", renewed)
	w.kvs("kept", get(w.Get(w, "kept")))
	must(keeper.Close())
	for response := range w.Watch(w, "kept", clientv3.WithRev(w.base+2)) {
		must(response.Err())
		w.saw("%s at %d", response.Events[0].Type, w.at(response.Events[0].Kv.ModRevision))
		return
	}
}

// sawOnce writes a line only the first time.
func (w *world) sawOnce(times int, format string, arguments ...any) {
	if times == 0 {
		w.saw(format, arguments...)
	}
}
