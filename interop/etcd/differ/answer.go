package main

import (
	"fmt"
	"slices"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// shownBytesMax bounds how much of a message a report prints.
const shownBytesMax = 1500

// runShownMax is how often in a row a report prints the same character.
const runShownMax = 20

// stableSortMax is up to how many keys etcd's sort keeps the order of equal ones: Go's sort works
// by insertion up to here, and by partition above, where the order of equals is an accident.
const stableSortMax = 12

// ttlSlack is by how many seconds the rest of a lease may differ from what was granted. No session
// lasts as long, and no lease the sessions keep is granted for less.
const ttlSlack = 900

// answer is what a server said to a step.
type answer struct {
	failure *status.Status
	reply   proto.Message
}

// String is the answer for a person.
func (a answer) String() string {
	if a.failure != nil {
		return fmt.Sprintf("error %s %q", a.failure.Code(), a.failure.Message())
	}
	if a.reply == nil {
		return "nothing"
	}
	return shown(a.reply)
}

// same compares two answers of which everything not comparable was masked.
func (a answer) same(b answer) bool {
	if (a.failure == nil) != (b.failure == nil) {
		return false
	}
	if a.failure != nil {
		return a.failure.Code() == b.failure.Code() && a.failure.Message() == b.failure.Message()
	}
	if (a.reply == nil) != (b.reply == nil) {
		return false
	}
	return a.reply == nil || proto.Equal(a.reply, b.reply)
}

func shown(message proto.Message) string {
	text := shortened(prototext.MarshalOptions{EmitUnknown: true}.Format(message))
	if len(text) > shownBytesMax {
		text = text[:shownBytesMax] + fmt.Sprintf("... (%d bytes)", len(text))
	}
	return string(message.ProtoReflect().Descriptor().Name()) + "{" + text + "}"
}

// shortened writes a character that comes very often in a row as how often it does.
func shortened(text string) string {
	var short strings.Builder
	for begin := 0; begin < len(text); {
		end := begin + 1
		for end < len(text) && text[end] == text[begin] {
			end++
		}
		if end-begin > runShownMax {
			fmt.Fprintf(&short, "%c(%d times)", text[begin], end-begin)
		} else {
			short.WriteString(text[begin:end])
		}
		begin = end
	}
	return short.String()
}

func typeNamed(name string) (proto.Message, error) {
	kind, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName(name))
	if err != nil {
		return nil, err
	}
	return kind.New().Interface(), nil
}

// masks is what is known of one server that makes its answers differ rightly from the other's.
type masks struct {
	// lease is the id this server chose last, and leases all it ever chose.
	lease  int64
	leases map[int64]bool
	// authBase is the auth revision when the session began.
	authBase uint64
}

// mask replaces, in place, what two correct servers need not agree on. This is the whole list:
//
//   - header: cluster_id, member_id and raft_term count only as zero or not zero;
//   - lease ids the server chose itself;
//   - the rest of a lease's time, within ttlSlack of what was granted;
//   - the order of LeaseLeases and of the keys of LeaseTimeToLive (etcd walks a hash map);
//   - tokens count only as empty or not empty; auth revisions count from the session's begin;
//   - HashKV: the hash counts only as zero or not zero (etcd hashes its own disk format);
//   - watch events of the very revision of the last compaction, see `pair.kept`;
//   - previous values that etcd leaves out where a watch catches up, see `watchLog.sameEvent`;
//   - the order among equals in a range sorted by something else than the key, above
//     stableSortMax keys, and with a limit which of the last equals are among the answer.
func (m *masks) mask(request, reply proto.Message) {
	m.maskLeases(reply)
	if headed, ok := reply.(interface{ GetHeader() *pb.ResponseHeader }); ok {
		maskHeader(headed.GetHeader())
	}
	switch reply := reply.(type) {
	case *pb.RangeResponse:
		maskTies(request.(*pb.RangeRequest), reply)
	case *pb.TxnResponse:
		maskTxn(request.(*pb.TxnRequest), reply)
	case *pb.LeaseTimeToLiveResponse:
		if rest := reply.GrantedTTL - reply.TTL; rest >= 0 && rest < ttlSlack {
			reply.TTL = reply.GrantedTTL
		}
		slices.SortFunc(reply.Keys, slices.Compare)
	case *pb.LeaseLeasesResponse:
		slices.SortFunc(reply.Leases, func(a, b *pb.LeaseStatus) int { return int(a.ID - b.ID) })
	case *pb.AuthenticateResponse:
		if reply.Token != "" {
			reply.Token = "token"
		}
	case *pb.AuthStatusResponse:
		reply.AuthRevision -= m.authBase
	case *pb.HashKVResponse:
		reply.Hash = min(reply.Hash, 1)
	}
}

// maskLeases replaces the ids that the server chose.
func (m *masks) maskLeases(message proto.Message) {
	if len(m.leases) == 0 {
		return
	}
	replaceNumbers(message.ProtoReflect(), func(value int64) int64 {
		if m.leases[value] {
			return autoLease
		}
		return value
	})
}

func maskHeader(header *pb.ResponseHeader) {
	if header != nil {
		header.ClusterId = min(header.ClusterId, 1)
		header.MemberId = min(header.MemberId, 1)
		header.RaftTerm = min(header.RaftTerm, 1)
	}
}

// maskTxn masks the ranges of a transaction, pairing each answer with its request.
func maskTxn(request *pb.TxnRequest, reply *pb.TxnResponse) {
	if reply == nil {
		return
	}
	requests := request.Failure
	if reply.Succeeded {
		requests = request.Success
	}
	if len(requests) != len(reply.Responses) {
		return
	}
	for i, one := range requests {
		if inner := reply.Responses[i].GetResponseRange(); inner != nil && one.GetRequestRange() != nil {
			maskTies(one.GetRequestRange(), inner)
		}
		if inner := reply.Responses[i].GetResponseTxn(); inner != nil && one.GetRequestTxn() != nil {
			maskTxn(one.GetRequestTxn(), inner)
		}
	}
}

func maskTies(request *pb.RangeRequest, reply *pb.RangeResponse) {
	if request.SortTarget == pb.RangeRequest_KEY || reply.Count <= stableSortMax {
		return
	}
	kvs := reply.Kvs
	for start := 0; start < len(kvs); {
		end := start + 1
		for end < len(kvs) && compareBy(request.SortTarget, kvs[start], kvs[end]) == 0 {
			end++
		}
		if end == len(kvs) && reply.More {
			// Which of the last equals made it is an accident too: only how many counts.
			for _, kv := range kvs[start:] {
				eraseAllBut(request.SortTarget, kv)
			}
		}
		slices.SortFunc(kvs[start:end], byKey)
		start = end
	}
}
