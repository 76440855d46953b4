package main

import (
	"context"
	"fmt"
	"net"
	"slices"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"go.etcd.io/etcd/client/v3/leasing"
	"go.etcd.io/etcd/client/v3/mirror"
	"go.etcd.io/etcd/client/v3/namespace"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
	"go.etcd.io/etcd/client/v3/naming/resolver"
	"go.etcd.io/etcd/client/v3/ordering"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/stats"
)

var packageScenarios = []scenario{
	{"namespace", namespaced},
	{"mirror", mirrored},
	{"leasing", leased},
	{"ordering", ordered},
	{"naming", named},
	{"kubernetes client", kubernetesClient},
}

func namespaced(w *world) {
	client := w.open()
	client.KV = namespace.NewKV(client.KV, "inside/")
	client.Watcher = namespace.NewWatcher(client.Watcher, "inside/")
	client.Lease = namespace.NewLease(client.Lease, "inside/")
	get(w.Put(w, "a", "outside"))
	get(client.Put(w, "a", "1"))
	grant := get(client.Grant(w, 100))
	get(client.Put(w, "b", "2", clientv3.WithLease(grant.ID)))
	w.kvs("inside", get(client.Get(w, "", clientv3.WithPrefix())))
	w.kvs("outside", get(w.Get(w, "", clientv3.WithPrefix())))
	response := get(client.Txn(w).If(clientv3.Compare(clientv3.Value("a"), "=", "1")).
		Then(clientv3.OpDelete("a"), clientv3.OpGet("", clientv3.WithFromKey())).Commit())
	w.saw("succeeded %v, left %s", response.Succeeded, response.Responses[1].GetResponseRange().Kvs[0].Key)
	w.saw("leased %s", get(client.TimeToLive(w, grant.ID, clientv3.WithAttachedKeys())).Keys)
	get(client.Put(w, "end", ""))
	w.events("inside", w.collect(client.Watch(w, "", clientv3.WithPrefix(), clientv3.WithRev(w.base+1)), "end"))
}

func mirrored(w *world) {
	for i := range 1500 {
		if i%50 == 0 {
			get(w.Put(w, fmt.Sprintf("src/%04d", i), fmt.Sprint(i)))
		}
	}
	ctx, cancel := context.WithCancel(w)
	defer cancel()
	syncer := mirror.NewSyncer(w.Client, "src/", 0)
	answers, failures := syncer.SyncBase(ctx)
	for response := range answers {
		w.saw("base of %d at %d", len(response.Kvs), w.at(response.Header.Revision))
	}
	must(<-failures)
	updates := syncer.SyncUpdates(ctx)
	get(w.Put(w, "src/0000", "changed"))
	get(w.Delete(w, "src/0050"))
	get(w.Put(w, "src/end", ""))
	w.events("update", w.collect(updates, "src/end"))
}

// leased caches keys under leases of its own; a write by another client takes them away.
func leased(w *world) {
	one, closeOne, err := leasing.NewKV(w.open(), "leases/")
	must(err)
	defer closeOne()
	two, closeTwo, err := leasing.NewKV(w.open(), "leases/")
	must(err)
	defer closeTwo()
	get(w.Put(w, "k", "0"))
	for i := range 10 {
		w.saw("one reads %s", get(one.Get(w, "k")).Kvs[0].Value)
		get(two.Put(w, "k", fmt.Sprint("two ", i)))
		w.saw("two reads %s", get(two.Get(w, "k")).Kvs[0].Value)
		get(one.Txn(w).If(clientv3.Compare(clientv3.Value("k"), "=", fmt.Sprint("two ", i))).
			Then(clientv3.OpPut("k", fmt.Sprint("one ", i))).Else(clientv3.OpDelete("k")).Commit())
		w.saw("then %s", get(two.Get(w, "k")).Kvs[0].Value)
	}
	w.saw("deleted %d", get(two.Delete(w, "k")).Deleted)
	w.saw("left %d", len(get(one.Get(w, "k")).Kvs))
}

func ordered(w *world) {
	client := w.open()
	violations := 0
	kv := ordering.NewKV(client.KV, func(clientv3.Op, clientv3.OpResponse, int64) error {
		violations++
		return nil
	})
	for i := range 50 {
		get(w.Put(w, "k", fmt.Sprint(i)))
		get(kv.Get(w, "k"))
		get(kv.Get(w, "k", clientv3.WithSerializable()))
		get(kv.Txn(w).Then(clientv3.OpGet("k")).Commit())
	}
	w.saw("%d answers older than the one before", violations)
}

// named registers servers under a name and calls whichever of them is there through the resolver.
func named(w *world) {
	manager := get(endpoints.NewManager(w.Client, "service"))
	ctx, cancel := context.WithCancel(w)
	defer cancel()
	changes := get(manager.NewWatchChannel(ctx))
	var servers []*grpc.Server
	var seen []*connections
	for i := range 2 {
		listener := get(net.Listen("tcp", "127.0.0.1:0"))
		seen = append(seen, newConnections())
		server := grpc.NewServer(grpc.StatsHandler(seen[i]))
		healthpb.RegisterHealthServer(server, health.NewServer())
		go func() { _ = server.Serve(listener) }()
		defer server.Stop()
		servers = append(servers, server)
		key := fmt.Sprint("service/", i)
		must(manager.AddEndpoint(w, key, endpoints.Endpoint{Addr: listener.Addr().String(), Metadata: fmt.Sprint("number ", i)}))
		for _, update := range <-changes {
			w.saw("%d %s %v", update.Op, update.Key, update.Endpoint.Metadata)
		}
	}
	builder := get(resolver.NewBuilder(w.Client))
	connection := get(grpc.NewClient("etcd:///service", grpc.WithResolvers(builder),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"round_robin":{}}]}`)))
	defer connection.Close()
	call := func() {
		reply := get(healthpb.NewHealthClient(connection).Check(w, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true)))
		w.saw("called: %s", reply.Status)
	}
	call()
	for _, server := range seen {
		w.await(server.begun)
	}
	must(manager.DeleteEndpoint(w, "service/0"))
	for _, update := range <-changes {
		w.saw("%d %s", update.Op, update.Key)
	}
	// The resolver has a watch of its own. Once it has seen the removal, it leaves the server.
	w.await(seen[0].ended)
	servers[0].Stop()
	call()
	var keys []string
	for key := range get(manager.List(w)) {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	w.saw("left %v", keys)
}

// connections tells when a server got a connection and when one ended.
type connections struct {
	begun, ended chan struct{}
}

func newConnections() *connections {
	return &connections{begun: make(chan struct{}, 1), ended: make(chan struct{}, 1)}
}

// HandleConn implements stats.Handler.
func (c *connections) HandleConn(_ context.Context, event stats.ConnStats) {
	told := c.begun
	if _, ended := event.(*stats.ConnEnd); ended {
		told = c.ended
	}
	select {
	case told <- struct{}{}:
	default:
	}
}

// TagConn implements stats.Handler.
func (c *connections) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleRPC implements stats.Handler.
func (c *connections) HandleRPC(context.Context, stats.RPCStats) {}

// TagRPC implements stats.Handler.
func (c *connections) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

// await waits for a signal.
func (w *world) await(signal <-chan struct{}) {
	select {
	case <-signal:
	case <-w.Done():
		must(w.Err())
	}
}

// kubernetesClient is the narrow client that Kubernetes' storage is built on.
func kubernetesClient(w *world) {
	client := &kubernetes.Client{Client: w.Client}
	client.Kubernetes = client
	var revisions []int64
	for i := range 4 {
		response := get(client.Kubernetes.OptimisticPut(w, fmt.Sprint("o/", i), []byte("1"), 0, kubernetes.PutOptions{}))
		w.saw("made %v at %d", response.Succeeded, w.at(response.Revision))
		revisions = append(revisions, response.Revision)
	}
	stale := get(client.Kubernetes.OptimisticPut(w, "o/0", []byte("2"), 0, kubernetes.PutOptions{GetOnFailure: true}))
	w.saw("made again %v, is %s", stale.Succeeded, stale.KV.Value)
	good := get(client.Kubernetes.OptimisticPut(w, "o/0", []byte("2"), revisions[0], kubernetes.PutOptions{}))
	w.saw("changed %v at %d", good.Succeeded, w.at(good.Revision))
	gone := get(client.Kubernetes.OptimisticDelete(w, "o/1", revisions[0], kubernetes.DeleteOptions{GetOnFailure: true}))
	w.saw("deleted with the wrong revision %v", gone.Succeeded)
	gone = get(client.Kubernetes.OptimisticDelete(w, "o/1", revisions[1], kubernetes.DeleteOptions{}))
	w.saw("deleted %v at %d", gone.Succeeded, w.at(gone.Revision))
	list := get(client.Kubernetes.List(w, "o/", kubernetes.ListOptions{Limit: 2}))
	w.saw("%d of %d at %d", len(list.Kvs), list.Count, w.at(list.Revision))
	rest := get(client.Kubernetes.List(w, "o/", kubernetes.ListOptions{Continue: string(list.Kvs[1].Key) + "\x00", Revision: list.Revision}))
	w.saw("then %d of %d", len(rest.Kvs), rest.Count)
	w.saw("%d in all", get(client.Kubernetes.Count(w, "o/", kubernetes.CountOptions{})))
	one := get(client.Kubernetes.Get(w, "o/0", kubernetes.GetOptions{Revision: revisions[3]}))
	w.saw("was %s", one.KV.Value)
}
