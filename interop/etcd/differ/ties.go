package main

import (
	"bytes"
	"cmp"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

func byKey(a, b *mvccpb.KeyValue) int { return bytes.Compare(a.Key, b.Key) }

// compareBy orders two pairs as a range sorted by this target does.
func compareBy(target pb.RangeRequest_SortTarget, a, b *mvccpb.KeyValue) int {
	switch target {
	case pb.RangeRequest_VERSION:
		return cmp.Compare(a.Version, b.Version)
	case pb.RangeRequest_CREATE:
		return cmp.Compare(a.CreateRevision, b.CreateRevision)
	case pb.RangeRequest_MOD:
		return cmp.Compare(a.ModRevision, b.ModRevision)
	case pb.RangeRequest_VALUE:
		return bytes.Compare(a.Value, b.Value)
	default:
		return byKey(a, b)
	}
}

// eraseAllBut leaves of a pair only what it was sorted by.
func eraseAllBut(target pb.RangeRequest_SortTarget, kv *mvccpb.KeyValue) {
	kept := mvccpb.KeyValue{}
	switch target {
	case pb.RangeRequest_VERSION:
		kept.Version = kv.Version
	case pb.RangeRequest_CREATE:
		kept.CreateRevision = kv.CreateRevision
	case pb.RangeRequest_MOD:
		kept.ModRevision = kv.ModRevision
	case pb.RangeRequest_VALUE:
		kept.Value = kv.Value
	}
	kv.Key, kv.Value, kv.Lease = nil, kept.Value, 0
	kv.Version, kv.CreateRevision, kv.ModRevision = kept.Version, kept.CreateRevision, kept.ModRevision
}
