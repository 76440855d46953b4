package main

import (
	"bytes"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"satrap.invalid/interop/etcd/internal/ring"
)

// watchesMax is how many watches a session keeps open at once.
const watchesMax = 12

// barrierEvery is how many steps pass between two barriers, on average.
const barrierEvery = 400

// chosen is one way to go on, and how often it is taken.
type chosen struct {
	weight int
	steps  func(*generator) []step
}

// ordinary is what a session without authentication does.
var ordinary = []chosen{
	{260, func(g *generator) []step { return []step{call(g.putRequest())} }},
	{260, func(g *generator) []step { return []step{call(g.rangeRequest())} }},
	{80, func(g *generator) []step { return []step{call(g.deleteRequest())} }},
	{220, func(g *generator) []step { return []step{call(g.txnRequest(0))} }},
	{20, func(g *generator) []step { return []step{g.streamStep()} }},
	{100, (*generator).leaseSteps},
	{30, (*generator).watchSteps},
	{4, (*generator).compactSteps},
	{4, (*generator).alarmSteps},
	{4, (*generator).hashSteps},
	{1, (*generator).largeSteps},
}

// next chooses what to do, by weight.
func (g *generator) next(from []chosen) []step {
	total := 0
	for _, one := range from {
		total += one.weight
	}
	at := g.IntN(total)
	for _, one := range from {
		if at -= one.weight; at < 0 {
			steps := one.steps(g)
			if g.oneIn(barrierEvery) {
				steps = append(steps, step{kind: kindBarrier})
			}
			return steps
		}
	}
	panic("weights do not add up")
}

// streamStep asks for a streamed range. With a target but no order, etcd sorts each part for itself
// and goes on after the last key of a part, so that it sends some keys twice.
func (g *generator) streamStep() step {
	request := g.rangeRequest()
	if request.SortOrder == pb.RangeRequest_NONE {
		request.SortTarget = pb.RangeRequest_KEY
	}
	return step{kind: kindStream, request: request}
}

func (g *generator) leaseSteps() []step {
	id := pick(g, 1+g.Int64N(12), 1+g.Int64N(12), 1+g.Int64N(12), g.lease())
	switch g.IntN(12) {
	case 0, 1, 2, 3:
		if id == 0 {
			return g.chosenLeaseSteps()
		}
		return []step{call(&pb.LeaseGrantRequest{ID: id, TTL: 10_000 + g.Int64N(1000)})}
	case 4, 5:
		return []step{call(&pb.LeaseRevokeRequest{ID: id})}
	case 6, 7:
		return []step{call(&pb.LeaseTimeToLiveRequest{ID: id, Keys: g.oneIn(2)})}
	case 8:
		return []step{call(&pb.LeaseLeasesRequest{})}
	case 9:
		// No server may be left holding a lease that runs out during the session.
		ttl := pick[int64](g, (0), 1, 2, 5, -1, -100, 9_000_000_000, 9_000_000_001, 1<<62)
		return []step{
			call(&pb.LeaseGrantRequest{ID: 77, TTL: ttl}), call(&pb.LeaseRevokeRequest{ID: 77}),
		}
	default:
		return []step{{kind: kindKeepAlive, request: &pb.LeaseKeepAliveRequest{ID: id}}}
	}
}

// chosenLeaseSteps lets the server choose the id of a lease, and uses it.
func (g *generator) chosenLeaseSteps() []step {
	steps := []step{
		call(&pb.LeaseGrantRequest{TTL: 20_000}),
		call(&pb.PutRequest{Key: g.key(), Lease: autoLease}),
		call(&pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Limit: 20}),
		call(&pb.LeaseTimeToLiveRequest{ID: autoLease, Keys: true}),
	}
	return append(steps, call(&pb.LeaseRevokeRequest{ID: autoLease}))
}

func watchCreate(create *pb.WatchCreateRequest) *pb.WatchRequest {
	return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}}
}

func watchCancel(id int64) *pb.WatchRequest {
	return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{
		CancelRequest: &pb.WatchCancelRequest{WatchId: id}}}
}

func (g *generator) watchSteps() []step {
	if len(g.watches) >= watchesMax || (len(g.watches) > 0 && g.oneIn(3)) {
		at := g.IntN(len(g.watches))
		id := g.watches[at]
		g.watches = append(g.watches[:at], g.watches[at+1:]...)
		return []step{{kind: kindWatch, request: watchCancel(id)}}
	}
	if g.oneIn(15) {
		// There is no such watch, and no answer.
		return []step{{kind: kindWatch, request: watchCancel(pick[int64](g, (500), -1, -7))}}
	}
	return []step{{kind: kindWatch, request: watchCreate(g.watchRequest())}}
}

func (g *generator) watchRequest() *pb.WatchCreateRequest {
	key := g.key()
	create := &pb.WatchCreateRequest{
		Key: key, PrevKv: g.oneIn(2), ProgressNotify: g.oneIn(4), Fragment: g.oneIn(4),
	}
	if !g.oneIn(4) {
		create.RangeEnd = g.end(key)
	}
	if g.oneIn(4) {
		create.Key, create.RangeEnd = []byte{0}, []byte{0}
	}
	for range g.IntN(3) {
		if g.oneIn(2) {
			create.Filters = append(create.Filters, pb.WatchCreateRequest_FilterType(pick[int32](g, 0, 1, 0, 1, 7)))
		}
	}
	switch g.IntN(8) {
	case 0, 1, 2:
		create.StartRevision = max(g.compacted, g.revision-g.Int64N(40))
	case 3:
		create.StartRevision = g.revision + 1 + g.Int64N(15)
	case 4:
		create.StartRevision = pick[int64](g, -1, 1, 2, g.compacted-1, g.compacted, g.compacted+1)
	}
	if g.oneIn(5) {
		create.WatchId = g.nextID
		g.nextID++
		if len(g.watches) > 0 && g.oneIn(3) {
			create.WatchId = pick(g, g.watches...)
		}
	}
	return create
}

// watched remembers a watch that a server opened, if nothing but a cancel will end it.
func (g *generator) watched(request *pb.WatchCreateRequest, response *pb.WatchResponse) {
	start := request.StartRevision
	if response.Created && !response.Canceled && (start == 0 || start >= g.compacted) {
		g.watches = append(g.watches, response.WatchId)
	}
}

// compactSteps compacts, with every watch at rest: whether a watch that lags behind survives a
// compaction depends on when etcd gets around to it.
func (g *generator) compactSteps() []step {
	return []step{
		{kind: kindBarrier},
		call(&pb.CompactionRequest{Revision: g.someRevision(), Physical: g.oneIn(2)}),
	}
}

// alarmSteps raises an alarm, tries what it forbids, and disarms it.
func (g *generator) alarmSteps() []step {
	alarm := pick(g, pb.AlarmType_NOSPACE, pb.AlarmType_NOSPACE, pb.AlarmType_CORRUPT)
	raise := &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, Alarm: alarm, MemberID: ring.TestMember}
	disarm := &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, Alarm: alarm, MemberID: ring.TestMember}
	list := &pb.AlarmRequest{Action: pb.AlarmRequest_GET, Alarm: pick(g, pb.AlarmType_NONE, alarm)}
	steps := []step{call(raise), call(list)}
	for range 3 {
		steps = append(steps, pick(g,
			call(g.putRequest()), call(g.txnRequest(0)), call(g.deleteRequest()), call(g.rangeRequest()),
			call(&pb.LeaseGrantRequest{ID: 40, TTL: 10_000}), call(&pb.LeaseRevokeRequest{ID: 40})))
	}
	return append(steps, call(disarm), call(list), call(disarm), call(&pb.LeaseRevokeRequest{ID: 40}))
}

// hashSteps asks for no hash of what is compacted: etcd answers if it happened to compute that one
// when it compacted, and refuses otherwise.
func (g *generator) hashSteps() []step {
	revision := g.someRevision()
	if revision > 0 && revision <= g.compacted {
		revision = 0
	}
	return []step{call(&pb.HashKVRequest{Revision: revision})}
}

// largeSteps sends what is as large as may be, or a little larger.
func (g *generator) largeSteps() []step {
	value := bytes.Repeat([]byte("x"), pick(g, 1_000_000, 1_572_000, 1_572_864, 1_600_000, 3_000_000))
	return []step{
		call(&pb.PutRequest{Key: []byte("large"), Value: value}),
		call(&pb.RangeRequest{Key: []byte("large"), KeysOnly: true}),
		call(&pb.DeleteRangeRequest{Key: []byte("large")}),
	}
}

// followed updates what later steps are chosen by, from etcd's answer to one.
func (g *generator) followed(one step, got answer, revision int64) {
	g.revision = revision
	if got.failure != nil {
		return
	}
	switch request := one.request.(type) {
	case *pb.CompactionRequest:
		g.compacted = request.Revision
	case *pb.WatchRequest:
		if create := request.GetCreateRequest(); create != nil && one.kind == kindWatch {
			g.watched(create, got.reply.(*pb.WatchResponse))
		}
	}
}
