package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// subject is what a lie is about.
type subject int

const (
	aboutNothing subject = iota // only the truth is told
	aboutAnswers                // the next answer, of whatever kind
	aboutEvents                 // the next response that brings watch events
)

// liar stands between us and a server, and changes one thing in some of its answers.
type liar struct {
	mu sync.Mutex
	*rand.Rand
	// about is what the next lie is to be about.
	about subject
	// told is the lie not yet asked for; empty if there is none.
	told string
}

// take returns the lie told since the last call, if any.
func (l *liar) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	told := l.told
	l.told = ""
	return told
}

// options makes a connection pass through the liar.
func (l *liar) options() []grpc.DialOption {
	return []grpc.DialOption{grpc.WithChainUnaryInterceptor(l.unary), grpc.WithChainStreamInterceptor(l.stream)}
}

func (l *liar) unary(
	ctx context.Context, method string, request, reply any, connection *grpc.ClientConn,
	invoke grpc.UnaryInvoker, options ...grpc.CallOption,
) error {
	err := invoke(ctx, method, request, reply, connection, options...)
	if grant, is := request.(*pb.LeaseGrantRequest); is && grant.ID == 0 {
		// Which id a server chooses is its affair, and later steps use what it said.
		return err
	}
	return l.corrupt(reply.(proto.Message), err)
}

func (l *liar) stream(
	ctx context.Context, description *grpc.StreamDesc, connection *grpc.ClientConn, method string,
	open grpc.Streamer, options ...grpc.CallOption,
) (grpc.ClientStream, error) {
	stream, err := open(ctx, description, connection, method, options...)
	return &lyingStream{stream, l}, err
}

// lyingStream corrupts what is received on a stream.
type lyingStream struct {
	grpc.ClientStream
	liar *liar
}

// RecvMsg receives, and perhaps lies about what.
func (s *lyingStream) RecvMsg(message any) error {
	if err := s.ClientStream.RecvMsg(message); err != nil {
		return err
	}
	return s.liar.corrupt(message.(proto.Message), nil)
}

// corrupt changes one thing in an answer, if it is time to.
func (l *liar) corrupt(reply proto.Message, err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	// One lie at a time: a second could undo the first.
	if l.about == aboutNothing || l.told != "" || (l.about == aboutEvents) != hasEvents(reply) {
		return err
	}
	if err != nil {
		failure := status.Convert(err)
		if l.IntN(2) == 0 {
			l.told = "status code"
			return status.Error(failure.Code()%codes.Unauthenticated+1, failure.Message())
		}
		l.told = "status message"
		return status.Error(failure.Code(), failure.Message()+".")
	}
	if l.IntN(20) == 0 && !isWatch(reply) {
		l.told = "an error instead of an answer"
		return status.Error(codes.Unavailable, "etcdserver: no leader")
	}
	name := string(reply.ProtoReflect().Descriptor().Name())
	places := lies(reply.ProtoReflect(), name, nil)
	if len(places) > 0 {
		place := places[l.IntN(len(places))]
		place.tell()
		l.told = place.path
	}
	return nil
}

func hasEvents(reply proto.Message) bool {
	response, is := reply.(*pb.WatchResponse)
	return is && len(response.Events) != 0
}

func isWatch(reply proto.Message) bool {
	_, is := reply.(*pb.WatchResponse)
	return is
}

// lie is one thing that can be changed in a message.
type lie struct {
	path string
	tell func()
}

// unseen are the fields in which a change proves nothing, for the reasons at `masks.mask`, and at
// `watchLog`: a watch's header only has to be no older than its events.
var unseen = []string{
	".header.cluster_id", ".header.member_id", ".header.raft_term", ".hash", ".token",
	"WatchResponse.header.revision", ".fragment",
}

// lies lists what can be changed in a message, in a fixed order.
func lies(message protoreflect.Message, path string, found []lie) []lie {
	fields := message.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		at := path + "." + string(field.Name())
		if field.ContainingOneof() != nil && !message.Has(field) {
			continue
		}
		if slices.ContainsFunc(unseen, func(end string) bool { return strings.HasSuffix(at, end) }) {
			continue
		}
		switch {
		case field.IsList():
			found = listLies(message, field, at, found)
		case field.Kind() == protoreflect.MessageKind:
			if message.Has(field) {
				found = append(found, lie{at + " missing", func() { message.Clear(field) }})
				found = lies(message.Get(field).Message(), at, found)
			}
		default:
			old := message.Get(field)
			found = append(found, lie{at, func() { message.Set(field, otherScalar(field, old)) }})
		}
	}
	return found
}

func listLies(message protoreflect.Message, field protoreflect.FieldDescriptor, at string, found []lie) []lie {
	list := message.Get(field).List()
	length := list.Len()
	if length == 0 {
		return found
	}
	found = append(found, lie{at + " one less", func() { message.Mutable(field).List().Truncate(length - 1) }})
	found = append(found, lie{at + " one twice", func() {
		message.Mutable(field).List().Append(list.Get(length - 1))
	}})
	if field.Kind() == protoreflect.MessageKind {
		found = lies(list.Get(length/2).Message(), at, found)
	}
	return found
}

// otherScalar is any other value of the field.
func otherScalar(field protoreflect.FieldDescriptor, old protoreflect.Value) protoreflect.Value {
	switch field.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(!old.Bool())
	case protoreflect.Int64Kind:
		if field.Name() == "TTL" {
			return protoreflect.ValueOfInt64(old.Int() + 2*ttlSlack)
		}
		return protoreflect.ValueOfInt64(old.Int() + 1)
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(old.Uint() + 1)
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(old.Uint()) + 1)
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(old.String() + "x")
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes(append(slices.Clone(old.Bytes()), 'x'))
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(old.Enum() + 1)
	default:
		panic(fmt.Sprintf("no lie for a field of kind %s", field.Kind()))
	}
}
