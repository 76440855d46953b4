package main

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"satrap.invalid/interop/etcd/internal/ring"
)

// answerMax is how long a server may take for one answer. It is shorter where answers are
// withheld on purpose.
var answerMax = 15 * time.Second

const lyingAnswerMax = time.Second

// side is one of the two servers during a session.
type side struct {
	name        string
	connections []*grpc.ClientConn
	// spread picks the endpoint of each step.
	spread *rand.Rand
	masks  masks
	// guarded says that authentication is on.
	guarded bool
	// tokens are by user.
	tokens  map[string]string
	watches *watchSide
}

func newSide(target ring.Target, options ...grpc.DialOption) (*side, error) {
	connections, err := target.Dial(options...)
	if err != nil {
		return nil, err
	}
	return &side{
		name: target.Name, connections: connections, tokens: map[string]string{},
		spread: rand.New(rand.NewPCG(1, 2)), masks: masks{leases: map[int64]bool{}},
	}, nil
}

// connection picks a member for a request. One that answers from what it has first catches up: a
// read through the log is answered only once the member has applied all that was answered before.
// Who calls is also judged by what a member has.
func (s *side) connection(ctx context.Context, request proto.Message) (*grpc.ClientConn, error) {
	picked := s.connections[s.spread.IntN(len(s.connections))]
	_, watches := request.(*pb.WatchRequest)
	if watches || s.guarded || readsLocally(request) {
		return picked, s.catchUp(ctx, picked)
	}
	return picked, nil
}

func (s *side) catchUp(ctx context.Context, member *grpc.ClientConn) error {
	if len(s.connections) == 1 {
		return nil
	}
	_, err := pb.NewKVClient(member).Range(ctx, &pb.RangeRequest{Key: []byte("x"), CountOnly: true})
	if code := status.Code(err); code == codes.PermissionDenied || code == codes.InvalidArgument ||
		code == codes.Unauthenticated {
		// A user without permission has made the member catch up all the same.
		return nil
	}
	return err
}

// readsLocally tells a request that a member may answer from what it has.
func readsLocally(request proto.Message) bool {
	switch request := request.(type) {
	case *pb.RangeRequest:
		return request.Serializable
	case *pb.TxnRequest:
		for _, op := range bothBranches(request) {
			if inner := op.GetRequestRange(); inner == nil || !inner.Serializable {
				return false
			}
		}
		return true
	case *pb.LeaseLeasesRequest, *pb.LeaseKeepAliveRequest, *pb.LeaseTimeToLiveRequest,
		*pb.HashKVRequest, *pb.AuthStatusRequest:
		return true
	default:
		return false
	}
}

func (s *side) context(user string) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(context.Background(), answerMax)
	if user != "" {
		token, known := s.tokens[user]
		if !known {
			token = "no such token"
		}
		ctx = metadata.AppendToOutgoingContext(ctx, "token", token)
	}
	return ctx, cancel
}

// perform does a step that is no barrier and returns the masked answer.
func (s *side) perform(one step, base int64) answer {
	request := one.concrete(base, s.masks.lease)
	ctx, cancel := s.context(one.as)
	defer cancel()
	var reply proto.Message
	var err error
	switch one.kind {
	case kindWatch:
		if err = s.catchUp(ctx, s.connections[0]); err == nil {
			reply, err = s.watches.send(request.(*pb.WatchRequest))
		}
	case kindWatchOnce:
		reply, err = s.watchOnce(ctx, request.(*pb.WatchRequest))
	case kindKeepAlive:
		reply, err = s.keepAlive(ctx, request.(*pb.LeaseKeepAliveRequest))
	case kindStream:
		reply, err = s.rangeStream(ctx, request.(*pb.RangeRequest))
	default:
		reply = unary[one.kind]()
		var member *grpc.ClientConn
		if member, err = s.connection(ctx, request); err == nil {
			err = member.Invoke(ctx, one.kind, request, reply)
		}
	}
	if err != nil {
		return answer{failure: status.Convert(err)}
	}
	if reply != nil {
		s.remember(one, request, reply)
		s.masks.mask(request, reply)
	}
	return answer{reply: reply}
}

// remember keeps of an answer what later steps need: tokens, and the lease a server named.
func (s *side) remember(one step, request, reply proto.Message) {
	switch reply := reply.(type) {
	case *pb.AuthenticateResponse:
		// A token is good where the login was applied, so from here on it counts like the above.
		s.guarded = true
		s.tokens[request.(*pb.AuthenticateRequest).Name] = reply.Token
	case *pb.AuthEnableResponse:
		s.guarded = true
	case *pb.AuthDisableResponse:
		s.guarded = false
	case *pb.LeaseGrantResponse:
		if one.request.(*pb.LeaseGrantRequest).ID == 0 {
			s.masks.lease = reply.ID
			s.masks.leases[reply.ID] = true
		}
	}
}

func (s *side) keepAlive(ctx context.Context, request *pb.LeaseKeepAliveRequest) (proto.Message, error) {
	member, err := s.connection(ctx, request)
	if err != nil {
		return nil, err
	}
	stream, err := pb.NewLeaseClient(member).LeaseKeepAlive(ctx)
	if err != nil {
		return nil, err
	}
	if err := stream.Send(request); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	// After an io.EOF the reason is in what the server sent.
	reply, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	return reply, stream.CloseSend()
}

func (s *side) rangeStream(ctx context.Context, request *pb.RangeRequest) (proto.Message, error) {
	member, err := s.connection(ctx, request)
	if err != nil {
		return nil, err
	}
	stream, err := pb.NewKVClient(member).RangeStream(ctx, request)
	if err != nil {
		return nil, err
	}
	whole := &pb.RangeResponse{}
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return whole, nil
		}
		if err != nil {
			return nil, err
		}
		// Where a stream is cut is the server's affair; merging is how the client reads it.
		proto.Merge(whole, part.RangeResponse)
	}
}

func (s *side) watchOnce(ctx context.Context, request *pb.WatchRequest) (proto.Message, error) {
	member, err := s.connection(ctx, request)
	if err != nil {
		return nil, err
	}
	stream, err := pb.NewWatchClient(member).Watch(ctx)
	if err != nil {
		return nil, err
	}
	if err := stream.Send(request); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	reply, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	return reply, nil
}
