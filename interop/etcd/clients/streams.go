package main

import (
	"context"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"google.golang.org/grpc"
)

var streamScenarios = []scenario{
	{"given up", givenUp},
	{"many streams", manyStreams},
}

// givenUp has clients queue for a lock and for an office and give up in each way there is. A key that
// one leaves behind would hold the lock, or lead, for as long as its lease lives.
func givenUp(w *world) {
	lease := get(w.Grant(w, 600)).ID
	lock := func(ctx context.Context, on *grpc.ClientConn, lease clientv3.LeaseID) error {
		_, err := v3lockpb.NewLockClient(on).Lock(ctx, &v3lockpb.LockRequest{Name: []byte("queue"), Lease: int64(lease)})
		return err
	}
	campaign := func(ctx context.Context, on *grpc.ClientConn, lease clientv3.LeaseID) error {
		_, err := v3electionpb.NewElectionClient(on).Campaign(ctx, &v3electionpb.CampaignRequest{
			Name: []byte("queue"), Lease: int64(lease), Value: []byte("x")})
		return err
	}
	for _, call := range []struct {
		name string
		wait func(context.Context, *grpc.ClientConn, clientv3.LeaseID) error
	}{{"lock", lock}, {"campaign", campaign}} {
		must(call.wait(w, w.bare, lease))
		for _, way := range []string{"deadline", "cancel", "closed connection"} {
			w.giveUp(call.name, way, call.wait)
		}
		get(w.Delete(w, "queue/", clientv3.WithPrefix()))
	}
}

// giveUp queues behind the holder, gives up in one way, and waits until the holder is alone again.
func (w *world) giveUp(name, way string, wait func(context.Context, *grpc.ClientConn, clientv3.LeaseID) error) {
	connection := get(w.target.Dial())[0]
	defer connection.Close()
	lease := get(w.Grant(w, 600)).ID
	ctx, cancel := context.WithCancel(w)
	if way == "deadline" {
		ctx, cancel = context.WithTimeout(w, time.Second)
	}
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- wait(ctx, connection, lease) }()
	w.queued(2)
	switch way {
	case "cancel":
		cancel()
	case "closed connection":
		must(connection.Close())
	}
	w.saw("%s, %s: %v", name, way, <-ended != nil)
	w.queued(1)
	kept := get(w.TimeToLive(w, lease, clientv3.WithAttachedKeys()))
	w.saw("%s, %s: %d keys of the lease that lives on", name, way, len(kept.Keys))
}

// queued waits until so many are in the queue; the scenario's time bounds it.
func (w *world) queued(count int64) {
	ctx, cancel := context.WithCancel(w)
	defer cancel()
	look := func() *clientv3.GetResponse {
		return get(w.Get(ctx, "queue/", clientv3.WithPrefix(), clientv3.WithCountOnly()))
	}
	found := look()
	changes := w.Watch(ctx, "queue/", clientv3.WithPrefix(), clientv3.WithRev(found.Header.Revision+1))
	for found.Count != count {
		_, open := <-changes
		hold(open, "the watch of the queue ended")
		found = look()
	}
}

// manyStreams opens a stream for each watch, as other clients than etcd's do, all at once on one connection.
// Everything else on it goes on.
func manyStreams(w *world) {
	const streams = 10_000
	watches := pb.NewWatchClient(w.bare)
	open := make([]pb.Watch_WatchClient, streams)
	ctx, cancel := context.WithCancel(w)
	defer cancel()
	sent := make(chan error, streams)
	for i := range open {
		go func() {
			stream, err := watches.Watch(ctx)
			if err == nil {
				open[i] = stream
				err = stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{
					CreateRequest: &pb.WatchCreateRequest{Key: fmt.Append(nil, "stream/", i%10)}}})
			}
			sent <- err
		}()
	}
	for range open {
		must(<-sent)
	}
	for _, stream := range open {
		hold(get(stream.Recv()).Created, "the first answer tells of no watch")
	}
	w.saw("%d streams are open", len(open))
	puts := pb.NewKVClient(w.bare)
	for i := range 10 {
		put := get(puts.Put(w, &pb.PutRequest{Key: fmt.Append(nil, "stream/", i), Value: []byte("x")}))
		w.saw("put at %d", w.at(put.Header.Revision))
	}
	for i, stream := range open {
		got := get(stream.Recv())
		hold(len(got.Events) == 1 && string(got.Events[0].Kv.Key) == fmt.Sprint("stream/", i%10), "stream %d got %v", i, got.Events)
	}
	w.saw("each had its event")
	locks := v3lockpb.NewLockClient(w.bare)
	held := get(locks.Lock(w, &v3lockpb.LockRequest{Name: []byte("door"), Lease: int64(get(w.Grant(w, 600)).ID)}))
	get(locks.Unlock(w, &v3lockpb.UnlockRequest{Key: held.Key}))
	w.saw("locked and unlocked")
}
