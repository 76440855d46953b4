package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"go.uber.org/zap"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"satrap.invalid/interop/etcd/internal/ring"
)

var serviceScenarios = []scenario{
	{"auth", authenticated},
	{"lock service", lockService},
	{"election service", electionService},
	{"maintenance", maintained},
	{"members", members},
	{"health", healthy},
}

// as is a client that logs in.
func (w *world) as(user, password string) (*clientv3.Client, error) {
	client, err := clientv3.New(clientv3.Config{
		Endpoints: w.target.Endpoints, TLS: get(w.target.TLS()), Username: user, Password: password, Context: w,
		Logger: zap.NewNop(),
	})
	if err == nil {
		w.cleanup = append(w.cleanup, func() { _ = client.Close() })
	}
	return client, err
}

func authenticated(w *world) {
	get(w.RoleAdd(w, "root"))
	get(w.UserAdd(w, "root", ring.RootPassword))
	get(w.UserGrantRole(w, "root", "root"))
	get(w.RoleAdd(w, "team"))
	get(w.RoleGrantPermission(w, "team", "team/", clientv3.GetPrefixRangeEnd("team/"), clientv3.PermissionType(clientv3.PermReadWrite)))
	get(w.RoleGrantPermission(w, "team", "public", "", clientv3.PermissionType(clientv3.PermRead)))
	get(w.UserAdd(w, "alice", "secret"))
	get(w.UserGrantRole(w, "alice", "team"))
	get(w.AuthEnable(w))
	_, err := w.Get(w, "team/a")
	w.saw("nobody reads: %s", told(err))
	_, err = w.as("alice", "wrong")
	w.saw("a wrong password: %s", told(err))
	root, alice := get(w.as("root", ring.RootPassword)), get(w.as("alice", "secret"))
	get(root.Put(w, "public", "x"))
	get(root.Put(w, "private", "x"))
	get(alice.Put(w, "team/a", "1"))
	w.kvs("alice", get(alice.Get(w, "team/", clientv3.WithPrefix())))
	for _, key := range []string{"public", "private", ""} {
		_, err := alice.Get(w, key, clientv3.WithPrefix())
		w.saw("alice reads all of %q: %s", key, told(err))
		_, err = alice.Put(w, key, "y")
		w.saw("alice writes %q: %s", key, told(err))
	}
	_, err = alice.Txn(w).Then(clientv3.OpPut("team/b", "2"), clientv3.OpGet("private")).Commit()
	w.saw("a transaction: %s", told(err))
	hold(errors.Is(err, rpctypes.ErrPermissionDenied), "the transaction answered %v", err)
	refused := <-alice.Watch(w, "private")
	w.saw("watching what is private: canceled %v, %s", refused.Canceled, told(refused.Err()))
	watch := alice.Watch(w, "team/", clientv3.WithPrefix(), clientv3.WithRev(w.base+1))
	get(root.Put(w, "team/end", ""))
	w.events("alice", w.collect(watch, "team/end"))
	grant := get(root.Grant(w, 100))
	get(root.Put(w, "private", "leased", clientv3.WithLease(grant.ID)))
	_, err = alice.Revoke(w, grant.ID)
	w.saw("alice revokes a lease on what is private: %s", told(err))
	_, err = alice.TimeToLive(w, grant.ID, clientv3.WithAttachedKeys())
	w.saw("alice asks for its keys: %s", told(err))
	// The client gets itself a new token when its old one is worth nothing any more.
	get(root.UserChangePassword(w, "alice", "other"))
	_, err = alice.Get(w, "team/a")
	w.saw("after her password was changed: %s", told(err))
	alice = get(w.as("alice", "other"))
	get(root.RoleRevokePermission(w, "team", "team/", clientv3.GetPrefixRangeEnd("team/")))
	_, err = alice.Get(w, "team/a")
	w.saw("after her permission was revoked: %s", told(err))
	user := get(alice.UserGet(w, "alice"))
	w.saw("alice has %v", user.Roles)
	_, err = alice.UserList(w)
	w.saw("alice lists users: %s", told(err))
	w.saw("enabled %v", get(root.AuthStatus(w)).Enabled)
	get(root.AuthDisable(w))
	w.kvs("nobody", get(w.Get(w, "", clientv3.WithPrefix(), clientv3.WithKeysOnly())))
}

func lockService(w *world) {
	locks := v3lockpb.NewLockClient(w.bare)
	one, two := get(w.Grant(w, 100)), get(w.Grant(w, 100))
	first := get(locks.Lock(w, &v3lockpb.LockRequest{Name: []byte("door"), Lease: int64(one.ID)}))
	w.saw("a key of the name: %v, at %d", strings.HasPrefix(string(first.Key), "door/"), w.at(first.Header.Revision))
	again := get(locks.Lock(w, &v3lockpb.LockRequest{Name: []byte("door"), Lease: int64(one.ID)}))
	w.saw("again by the same: the same key %v", string(again.Key) == string(first.Key))
	locked := make(chan error, 1)
	go func() {
		_, err := locks.Lock(w, &v3lockpb.LockRequest{Name: []byte("door"), Lease: int64(two.ID)})
		locked <- err
	}()
	get(locks.Unlock(w, &v3lockpb.UnlockRequest{Key: first.Key}))
	must(<-locked)
	get(w.Revoke(w, two.ID))
	_, err := locks.Lock(w, &v3lockpb.LockRequest{Name: []byte("door"), Lease: int64(two.ID)})
	w.saw("with a lease that is no more: %s %s", status.Code(err), status.Convert(err).Message())
	unlocked := get(locks.Unlock(w, &v3lockpb.UnlockRequest{Key: []byte("no such key")}))
	w.saw("nothing unlocked at %d", w.at(unlocked.Header.Revision))
}

func electionService(w *world) {
	elections := v3electionpb.NewElectionClient(w.bare)
	_, err := elections.Leader(w, &v3electionpb.LeaderRequest{Name: []byte("office")})
	w.saw("nobody: %s %s", status.Code(err), status.Convert(err).Message())
	grant := get(w.Grant(w, 100))
	ctx, cancel := context.WithCancel(w)
	defer cancel()
	observed := get(elections.Observe(ctx, &v3electionpb.LeaderRequest{Name: []byte("office")}))
	won := get(elections.Campaign(w, &v3electionpb.CampaignRequest{
		Name: []byte("office"), Lease: int64(grant.ID), Value: []byte("one")}))
	w.saw("won at %d, revision %d, name %s", w.at(won.Header.Revision), w.at(won.Leader.Rev), won.Leader.Name)
	w.saw("observed %s", get(observed.Recv()).Kv.Value)
	get(elections.Proclaim(w, &v3electionpb.ProclaimRequest{Leader: won.Leader, Value: []byte("two")}))
	w.saw("observed %s", get(observed.Recv()).Kv.Value)
	leader := get(elections.Leader(w, &v3electionpb.LeaderRequest{Name: []byte("office")}))
	w.saw("leader %s", leader.Kv.Value)
	get(elections.Resign(w, &v3electionpb.ResignRequest{Leader: won.Leader}))
	_, err = elections.Proclaim(w, &v3electionpb.ProclaimRequest{Leader: won.Leader, Value: []byte("late")})
	w.saw("too late: %s %s", status.Code(err), status.Convert(err).Message())
	_, err = elections.Resign(w, &v3electionpb.ResignRequest{})
	w.saw("resigned from nothing: %s %s", status.Code(err), status.Convert(err).Message())
	_, err = elections.Proclaim(w, &v3electionpb.ProclaimRequest{})
	w.saw("proclaimed for nothing: %s %s", status.Code(err), status.Convert(err).Message())
	revoked := get(w.Grant(w, 100))
	get(w.Revoke(w, revoked.ID))
	_, err = elections.Campaign(w, &v3electionpb.CampaignRequest{Name: []byte("office"), Lease: int64(revoked.ID)})
	w.saw("without a lease: %s %s", status.Code(err), status.Convert(err).Message())
}

func maintained(w *world) {
	for i := range 50 {
		get(w.Put(w, fmt.Sprint("k", i), strings.Repeat("v", 1000)))
	}
	endpoint := w.Endpoints()[0]
	state := get(w.Status(w, endpoint))
	w.saw("has a leader %v, a version %v, sizes %v, learner %v, errors %v", state.Leader != 0, state.Version != "",
		state.DbSize > 0 && state.DbSizeInUse > 0, state.IsLearner, state.Errors)
	hold(state.RaftAppliedIndex <= state.RaftIndex && state.RaftTerm > 0, "applied %d of %d", state.RaftAppliedIndex, state.RaftIndex)
	hash, same := get(w.HashKV(w, endpoint, w.base+20)), get(w.HashKV(w, endpoint, w.base+20))
	w.saw("the hash of a revision stays: %v, at %d", hash.Hash == same.Hash, w.at(hash.HashRevision))
	get(w.Defragment(w, endpoint))
	w.saw("alarms %d", len(get(w.AlarmList(w)).Alarms))
	snapshot := get(w.SnapshotWithVersion(w))
	size := get(io.Copy(io.Discard, snapshot.Snapshot))
	must(snapshot.Snapshot.Close())
	// After the data come the 32 bytes of its digest, which is how a client tells it is whole.
	w.saw("snapshot: with data %v, a digest %v, a version %v", size > 1000, size%512 == 32, snapshot.Version != "")
	refused := map[bool]string{}
	for _, endpoint := range w.all {
		target := w.target
		target.Endpoints = []string{endpoint}
		client := get(target.Client())
		state := get(client.Status(w, endpoint))
		_, err := client.MoveLeader(w, 4711)
		refused[state.Leader == state.Header.MemberId] = told(err)
		must(client.Close())
	}
	w.saw("moved to nobody by the leader: %s", refused[true])
	w.saw("moved to nobody by another: %s", refused[false])
}

func members(w *world) {
	list := get(w.MemberList(w))
	ids := map[uint64]bool{}
	for _, member := range list.Members {
		ids[member.ID] = true
		hold(member.Name != "" && len(member.PeerURLs) > 0 && len(member.ClientURLs) > 0, "member %v", member)
	}
	hold(len(ids) == len(list.Members) && ids[list.Header.MemberId], "members %v", list)
	must(w.Sync(w))
	var synced []string
	for _, endpoint := range w.Endpoints() {
		_, bare, _ := strings.Cut(endpoint, "://")
		synced = append(synced, bare)
	}
	slices.Sort(synced)
	given := slices.Sorted(slices.Values(w.all))
	w.saw("the client's endpoints are those given: %v", slices.Equal(synced, given))
	get(w.Put(w, "after", "sync"))
	w.kvs("after", get(w.Get(w, "after")))
}

func healthy(w *world) {
	client := healthpb.NewHealthClient(w.bare)
	w.saw("%s", get(client.Check(w, &healthpb.HealthCheckRequest{})).Status)
	_, err := client.Check(w, &healthpb.HealthCheckRequest{Service: "nonsense"})
	w.saw("of no service: %s", status.Code(err))
	watch := get(client.Watch(w, &healthpb.HealthCheckRequest{}))
	w.saw("watched: %s", get(watch.Recv()).Status)
	watch = get(client.Watch(w, &healthpb.HealthCheckRequest{Service: "nonsense"}))
	w.saw("watched, of no service: %s", get(watch.Recv()).Status)
}
