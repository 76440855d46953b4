package main

import (
	"bytes"
	"math"
	"math/rand/v2"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// generator makes the steps of one session from a seed and from what etcd answered so far.
type generator struct {
	*rand.Rand
	// revision and compacted are relative, as in steps.
	revision, compacted int64
	// watches are the ids of those that stay open until they are canceled.
	watches []int64
	nextID  int64
	// users is empty unless the session runs with authentication on.
	users []string
}

func newGenerator(seed uint64) *generator {
	return &generator{
		Rand:     rand.New(rand.NewPCG(seed, 0x5a7a9)),
		revision: relative, compacted: relative, nextID: 1000,
	}
}

// oneIn is true once in n.
func (g *generator) oneIn(n int) bool { return g.IntN(n) == 0 }

// pick chooses one of the values.
func pick[T any](g *generator, values ...T) T { return values[g.IntN(len(values))] }

// fewKeys collide often, and differ by zero bytes, by 0xff and by being prefixes of one another.
var fewKeys = [][]byte{
	[]byte("a"), []byte("a\x00"), []byte("a\x00\x00"), []byte("a\xff"), []byte("aa"), []byte("ab"),
	[]byte("a/1"), []byte("a/2"), []byte("a/3"), []byte("b"), []byte("b\xff\xff"), []byte("c"),
	{0}, {0, 0}, {0xff}, {0xff, 0xff}, []byte("pad"), bytes.Repeat([]byte("long"), 8),
}

func (g *generator) key() []byte {
	switch choice := g.IntN(120); {
	case choice == 0:
		return nil
	case choice < 45:
		return []byte{'k', byte('0' + g.IntN(6)), byte('0' + g.IntN(8))}
	default:
		return fewKeys[g.IntN(len(fewKeys))]
	}
}

// end is the end of a range that begins at the key; often none, and sometimes before its begin.
func (g *generator) end(key []byte) []byte {
	switch g.IntN(10) {
	case 0, 1, 2:
		return nil
	case 3:
		return []byte{0}
	case 4, 5, 6:
		return []byte(clientv3.GetPrefixRangeEnd(string(key)))
	case 7:
		return append(bytes.Clone(key), 0)
	case 8:
		return bytes.Clone(key)
	default:
		return g.key()
	}
}

func (g *generator) value() []byte {
	switch g.IntN(12) {
	case 0:
		return nil
	case 1:
		return []byte{0}
	case 2:
		return bytes.Repeat([]byte{byte(g.Uint32())}, 1<<g.IntN(12))
	default:
		return []byte{byte('0' + g.IntN(10))}
	}
}

// at is a revision to read at, mostly none.
func (g *generator) at() int64 {
	if !g.oneIn(3) {
		return 0
	}
	return g.someRevision()
}

// someRevision is any revision that might matter, also absurd ones.
func (g *generator) someRevision() int64 {
	switch g.IntN(14) {
	case 0:
		return pick[int64](g, -1, math.MinInt64, 1, 2, math.MaxInt64, math.MaxInt64-1)
	case 1:
		return g.revision + 1 + g.Int64N(3)
	case 2:
		return g.compacted + g.Int64N(5) - 2
	case 3, 4, 5:
		return g.revision
	case 6, 7, 8, 9, 10:
		return max(relative-2, g.revision-g.Int64N(12))
	default:
		return g.compacted + g.Int64N(max(1, g.revision-g.compacted+1))
	}
}

func (g *generator) lease() int64 {
	switch g.IntN(12) {
	case 0:
		return pick[int64](g, -1, math.MaxInt64, math.MinInt64, 999)
	case 1, 2, 3:
		return 1 + g.Int64N(12)
	default:
		return 0
	}
}

func (g *generator) rangeRequest() *pb.RangeRequest {
	key := g.key()
	request := &pb.RangeRequest{Key: key, RangeEnd: g.end(key), Revision: g.at()}
	if g.oneIn(3) {
		request.Limit = pick[int64](g, 1, 2, 3, 5, 10, 100, math.MaxInt64, math.MaxInt64-1, -1, math.MinInt64)
	}
	if g.oneIn(2) {
		request.SortOrder = pb.RangeRequest_SortOrder(g.IntN(3))
		request.SortTarget = pb.RangeRequest_SortTarget(g.IntN(5))
	}
	if g.oneIn(150) {
		request.SortOrder = pb.RangeRequest_SortOrder(pick[int32](g, 3, -1, math.MaxInt32))
	}
	if g.oneIn(150) {
		request.SortTarget = pb.RangeRequest_SortTarget(pick[int32](g, 5, -1, math.MaxInt32))
	}
	request.Serializable = g.oneIn(3)
	request.KeysOnly = g.oneIn(6)
	request.CountOnly = g.oneIn(8)
	for _, bound := range []*int64{
		&request.MinModRevision, &request.MaxModRevision,
		&request.MinCreateRevision, &request.MaxCreateRevision,
	} {
		if g.oneIn(10) {
			*bound = g.someRevision()
		}
	}
	return request
}

func (g *generator) putRequest() *pb.PutRequest {
	request := &pb.PutRequest{Key: g.key(), Value: g.value(), Lease: g.lease(), PrevKv: g.oneIn(3)}
	if g.oneIn(8) {
		request.IgnoreValue = true
		if !g.oneIn(5) {
			request.Value = nil
		}
	}
	if g.oneIn(8) {
		request.IgnoreLease = true
		if !g.oneIn(5) {
			request.Lease = 0
		}
	}
	return request
}

func (g *generator) deleteRequest() *pb.DeleteRangeRequest {
	key := g.key()
	request := &pb.DeleteRangeRequest{Key: key, PrevKv: g.oneIn(2)}
	if g.oneIn(3) {
		request.RangeEnd = g.end(key)
	}
	return request
}

func (g *generator) compare() *pb.Compare {
	key := g.key()
	compare := &pb.Compare{
		Key:    key,
		Result: pb.Compare_CompareResult(g.IntN(4)), Target: pb.Compare_CompareTarget(g.IntN(5)),
	}
	if g.oneIn(4) {
		compare.RangeEnd = g.end(key)
	}
	union := int(compare.Target)
	if g.oneIn(40) {
		// What is compared, and what it is compared with, need not fit together.
		union = g.IntN(6)
	}
	switch union {
	case int(pb.Compare_VERSION):
		compare.TargetUnion = &pb.Compare_Version{Version: pick[int64](g, 0, 1, 2, g.Int64N(9), -1)}
	case int(pb.Compare_CREATE):
		compare.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: pick[int64](g, 0, g.someRevision())}
	case int(pb.Compare_MOD):
		compare.TargetUnion = &pb.Compare_ModRevision{ModRevision: pick[int64](g, 0, g.someRevision())}
	case int(pb.Compare_VALUE):
		compare.TargetUnion = &pb.Compare_Value{Value: g.value()}
	case int(pb.Compare_LEASE):
		compare.TargetUnion = &pb.Compare_Lease{Lease: g.lease()}
	}
	if g.oneIn(100) {
		compare.Result = pb.Compare_CompareResult(pick[int32](g, 4, -1))
	}
	if g.oneIn(100) {
		compare.Target = pb.Compare_CompareTarget(pick[int32](g, 5, -1))
	}
	return compare
}

// txnRequest makes no transaction that deletes and also keeps the value or lease of a key: etcd
// crashes when the key is deleted before, which its check for overlaps misses in some ranges.
func (g *generator) txnRequest(depth int) *pb.TxnRequest {
	request := g.anyTxn(depth)
	if depth == 0 && deletes(request) {
		forgetful(request)
	}
	return request
}

func deletes(request *pb.TxnRequest) bool {
	return slices.ContainsFunc(bothBranches(request), func(op *pb.RequestOp) bool {
		inner := op.GetRequestTxn()
		return op.GetRequestDeleteRange() != nil || (inner != nil && deletes(inner))
	})
}

func forgetful(request *pb.TxnRequest) {
	for _, op := range bothBranches(request) {
		if put := op.GetRequestPut(); put != nil {
			put.IgnoreLease, put.IgnoreValue = false, false
		}
		if inner := op.GetRequestTxn(); inner != nil {
			forgetful(inner)
		}
	}
}

func bothBranches(request *pb.TxnRequest) []*pb.RequestOp {
	return slices.Concat(request.Success, request.Failure)
}

func (g *generator) anyTxn(depth int) *pb.TxnRequest {
	request := &pb.TxnRequest{}
	for range g.IntN(4) {
		request.Compare = append(request.Compare, g.compare())
	}
	readOnly := g.oneIn(5)
	request.Success = g.ops(depth, readOnly)
	request.Failure = g.ops(depth, readOnly)
	if g.oneIn(300) {
		// Around the most operations one transaction may have.
		for len(request.Success) < pick(g, 127, 128, 129) {
			key := []byte{'m', byte(len(request.Success))}
			request.Success = append(request.Success, putOp(&pb.PutRequest{Key: key}))
		}
	}
	return request
}

func (g *generator) ops(depth int, readOnly bool) []*pb.RequestOp {
	var ops []*pb.RequestOp
	for range g.IntN(4) {
		choice := g.IntN(10)
		if readOnly {
			choice = 0
		}
		switch {
		case choice < 3:
			ops = append(ops, &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: g.rangeRequest()}})
		case choice < 6:
			ops = append(ops, putOp(g.putRequest()))
		case choice < 8:
			ops = append(ops, &pb.RequestOp{
				Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: g.deleteRequest()}})
		case depth < 3:
			ops = append(ops, &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: g.txnRequest(depth + 1)}})
		}
	}
	if g.oneIn(200) {
		ops = append(ops, &pb.RequestOp{})
	}
	return ops
}

func putOp(request *pb.PutRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: request}}
}
