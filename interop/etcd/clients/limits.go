package main

import (
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/protobuf/encoding/protowire"

	"satrap.invalid/interop/etcd/internal/ring"
)

var limitScenarios = []scenario{
	{"compressed requests", compressedRequests},
	{"the longest request", longestRequest},
	{"inverted ranges", invertedRanges},
}

// requestBytesMax is etcd's default of --max-request-bytes.
const requestBytesMax = 1536 * 1024

// compressedRequests go to services of every kind, and one of them becomes larger than is allowed.
func compressedRequests(w *world) {
	packed := grpc.UseCompressor(gzip.Name)
	kv, lease := pb.NewKVClient(w.bare), pb.NewLeaseClient(w.bare)
	value := []byte(strings.Repeat("v", 1_000_000))
	put := get(kv.Put(w, &pb.PutRequest{Key: []byte("k"), Value: value}, packed))
	w.saw("a put at %d", w.at(put.Header.Revision))
	found := get(kv.Range(w, &pb.RangeRequest{Key: []byte("k")}, packed))
	w.saw("a read of %d bytes", len(found.Kvs[0].Value))
	granted := get(lease.LeaseGrant(w, &pb.LeaseGrantRequest{TTL: 100, ID: 77}, packed))
	w.saw("a lease %d", granted.ID)
	list := get(pb.NewClusterClient(w.bare).MemberList(w, &pb.MemberListRequest{}, packed))
	w.saw("members: %v", len(list.Members) > 0)
	watch := get(pb.NewWatchClient(w.bare).Watch(w, packed))
	create := &pb.WatchCreateRequest{Key: []byte("k"), StartRevision: w.base + 1}
	must(watch.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}}))
	w.saw("a watch: %v", get(watch.Recv()).Created)
	w.saw("of %d events", len(get(watch.Recv()).Events))
	zeros := make([]byte, 10<<20)
	_, err := kv.Put(w, &pb.PutRequest{Key: []byte("k"), Value: zeros}, packed)
	w.saw("ten megabytes of zeros: %s", told(err))
}

// longestRequest puts values around the largest that a server takes. It bounds what it would write to
// its log: the message, and a header of a number that begins with two bytes of the member's id, and
// of who asks by certificate.
func longestRequest(w *world) {
	member := get(w.Status(w, w.target.Endpoints[0])).Header.MemberId
	header := 1 + protowire.SizeVarint(member<<48|0xffff_ffff_ffff)
	if name := get(w.target.CommonName()); name != "" {
		// The name, and the revision of users and roles.
		header += 1 + protowire.SizeBytes(len(name)) + 2
	}
	entry := func(valueBytes int) int {
		message := 3 + 1 + protowire.SizeBytes(valueBytes)
		return 2 + protowire.SizeBytes(header) + 1 + protowire.SizeBytes(message)
	}
	longest := requestBytesMax
	for entry(longest) > requestBytesMax {
		longest--
	}
	put := func(valueBytes int) string {
		_, err := w.Put(w, "k", strings.Repeat("v", valueBytes))
		return told(err)
	}
	w.saw("the longest: %s", put(longest))
	w.saw("one byte more: %s", put(longest+1))
	w.saw("1572856 bytes: %s", put(1_572_856))
	w.saw("more than the transport takes: %s", put(3<<20))
}

// invertedRanges end before they begin, inside of what a user may read.
func invertedRanges(w *world) {
	get(w.RoleAdd(w, "root"))
	get(w.UserAdd(w, "root", ring.RootPassword))
	get(w.UserGrantRole(w, "root", "root"))
	get(w.RoleAdd(w, "some"))
	both := clientv3.PermissionType(clientv3.PermReadWrite)
	get(w.RoleGrantPermission(w, "some", "b", "d", both))
	get(w.RoleGrantPermission(w, "some", "x", "z", both))
	get(w.UserAdd(w, "alice", "secret"))
	get(w.UserGrantRole(w, "alice", "some"))
	get(w.AuthEnable(w))
	root, alice := get(w.as("root", ring.RootPassword)), get(w.as("alice", "secret"))
	for _, end := range []string{"a", "b"} {
		_, err := alice.Get(w, "y", clientv3.WithRange(end))
		w.saw("a read from y to %s: %s", end, told(err))
		_, err = alice.Delete(w, "y", clientv3.WithRange(end))
		w.saw("a deletion from y to %s: %s", end, told(err))
	}
	_, err := alice.Get(w, "y", clientv3.WithRange("yy"))
	w.saw("a read in order: %s", told(err))
	_, err = root.Get(w, "y", clientv3.WithRange("a"))
	w.saw("a read by root: %s", told(err))
	get(root.AuthDisable(w))
}
