package main

import (
	"encoding/json"
	"fmt"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Numbers in a step that mean something else: a revision relative to where the session began, so
// that a step can be replayed later, and the lease the server itself chose the id of.
const (
	relative  int64 = 1 << 40
	autoLease int64 = 1 << 45
)

// The kinds of step that are no unary call.
const (
	kindWatch     = "watch"        // a request on the session's watch stream
	kindWatchOnce = "watch-once"   // create a watch on a stream of its own, look at the answer
	kindKeepAlive = "keep-alive"   // one renewal on a stream of its own
	kindStream    = "range-stream" // a streamed range, put together again
	kindBarrier   = "barrier"      // every watch must have delivered everything
)

// step is one thing done to both servers.
type step struct {
	// kind is one of the kinds above, or the full name of a unary method.
	kind string
	// request is nil for a barrier.
	request proto.Message
	// as names the user whose token goes along; empty for none.
	as string
}

// unary lists every method the sessions call, with the message it answers.
var unary = map[string]func() proto.Message{
	"/etcdserverpb.KV/Range":                  func() proto.Message { return new(pb.RangeResponse) },
	"/etcdserverpb.KV/Put":                    func() proto.Message { return new(pb.PutResponse) },
	"/etcdserverpb.KV/DeleteRange":            func() proto.Message { return new(pb.DeleteRangeResponse) },
	"/etcdserverpb.KV/Txn":                    func() proto.Message { return new(pb.TxnResponse) },
	"/etcdserverpb.KV/Compact":                func() proto.Message { return new(pb.CompactionResponse) },
	"/etcdserverpb.Lease/LeaseGrant":          func() proto.Message { return new(pb.LeaseGrantResponse) },
	"/etcdserverpb.Lease/LeaseRevoke":         func() proto.Message { return new(pb.LeaseRevokeResponse) },
	"/etcdserverpb.Lease/LeaseTimeToLive":     func() proto.Message { return new(pb.LeaseTimeToLiveResponse) },
	"/etcdserverpb.Lease/LeaseLeases":         func() proto.Message { return new(pb.LeaseLeasesResponse) },
	"/etcdserverpb.Maintenance/HashKV":        func() proto.Message { return new(pb.HashKVResponse) },
	"/etcdserverpb.Maintenance/Alarm":         func() proto.Message { return new(pb.AlarmResponse) },
	"/etcdserverpb.Auth/AuthEnable":           func() proto.Message { return new(pb.AuthEnableResponse) },
	"/etcdserverpb.Auth/AuthDisable":          func() proto.Message { return new(pb.AuthDisableResponse) },
	"/etcdserverpb.Auth/AuthStatus":           func() proto.Message { return new(pb.AuthStatusResponse) },
	"/etcdserverpb.Auth/Authenticate":         func() proto.Message { return new(pb.AuthenticateResponse) },
	"/etcdserverpb.Auth/UserAdd":              func() proto.Message { return new(pb.AuthUserAddResponse) },
	"/etcdserverpb.Auth/UserGet":              func() proto.Message { return new(pb.AuthUserGetResponse) },
	"/etcdserverpb.Auth/UserList":             func() proto.Message { return new(pb.AuthUserListResponse) },
	"/etcdserverpb.Auth/UserDelete":           func() proto.Message { return new(pb.AuthUserDeleteResponse) },
	"/etcdserverpb.Auth/UserChangePassword":   func() proto.Message { return new(pb.AuthUserChangePasswordResponse) },
	"/etcdserverpb.Auth/UserGrantRole":        func() proto.Message { return new(pb.AuthUserGrantRoleResponse) },
	"/etcdserverpb.Auth/UserRevokeRole":       func() proto.Message { return new(pb.AuthUserRevokeRoleResponse) },
	"/etcdserverpb.Auth/RoleAdd":              func() proto.Message { return new(pb.AuthRoleAddResponse) },
	"/etcdserverpb.Auth/RoleGet":              func() proto.Message { return new(pb.AuthRoleGetResponse) },
	"/etcdserverpb.Auth/RoleList":             func() proto.Message { return new(pb.AuthRoleListResponse) },
	"/etcdserverpb.Auth/RoleDelete":           func() proto.Message { return new(pb.AuthRoleDeleteResponse) },
	"/etcdserverpb.Auth/RoleGrantPermission":  func() proto.Message { return new(pb.AuthRoleGrantPermissionResponse) },
	"/etcdserverpb.Auth/RoleRevokePermission": func() proto.Message { return new(pb.AuthRoleRevokePermissionResponse) },
}

// methods finds the unary method that takes a message.
var methods = map[protoreflect.FullName]string{}

// Messages are named after their method, which saves writing the pairs down twice.
func init() {
	for method, reply := range unary {
		name := reply().ProtoReflect().Descriptor().FullName()
		methods[protoreflect.FullName(strings.TrimSuffix(string(name), "Response")+"Request")] = method
	}
}

// call makes the step of a unary request.
func call(request proto.Message) step {
	method, known := methods[request.ProtoReflect().Descriptor().FullName()]
	if !known {
		panic(fmt.Sprintf("no method takes %T", request))
	}
	return step{kind: method, request: request}
}

// by is the same step with a user's token.
func (s step) by(user string) step {
	s.as = user
	return s
}

// concrete is the request as it is sent: revisions absolute, the chosen lease filled in.
func (s step) concrete(base, lease int64) proto.Message {
	if s.request == nil {
		return nil
	}
	request := proto.Clone(s.request)
	replaceNumbers(request.ProtoReflect(), func(value int64) int64 {
		switch {
		case value == autoLease:
			return lease
		case value > relative/2 && value < relative*2:
			return value - relative + base
		default:
			return value
		}
	})
	return request
}

// replaceNumbers rewrites every int64 of a message and of the messages in it.
func replaceNumbers(message protoreflect.Message, rewrite func(int64) int64) {
	message.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case field.Kind() == protoreflect.Int64Kind && !field.IsList():
			if old := value.Int(); rewrite(old) != old {
				message.Set(field, protoreflect.ValueOfInt64(rewrite(old)))
			}
		case field.Kind() == protoreflect.MessageKind && field.IsList():
			for i := range value.List().Len() {
				replaceNumbers(value.List().Get(i).Message(), rewrite)
			}
		case field.Kind() == protoreflect.MessageKind:
			replaceNumbers(value.Message(), rewrite)
		}
		return true
	})
}

// written is a step as a line of a file.
type written struct {
	Kind    string          `json:"kind"`
	As      string          `json:"as,omitempty"`
	Message string          `json:"message,omitempty"`
	Request json.RawMessage `json:"request,omitempty"`
}

// MarshalJSON writes the step so that UnmarshalJSON makes the same one again.
func (s step) MarshalJSON() ([]byte, error) {
	line := written{Kind: s.kind, As: s.as}
	if s.request != nil {
		request, err := protojson.Marshal(s.request)
		if err != nil {
			return nil, err
		}
		line.Request = request
		line.Message = string(s.request.ProtoReflect().Descriptor().FullName())
	}
	return json.Marshal(line)
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (s *step) UnmarshalJSON(text []byte) error {
	var line written
	if err := json.Unmarshal(text, &line); err != nil {
		return err
	}
	s.kind, s.as = line.Kind, line.As
	if line.Message == "" {
		return nil
	}
	for _, known := range []proto.Message{
		new(pb.WatchRequest), new(pb.LeaseKeepAliveRequest), new(pb.RangeRequest),
	} {
		if string(known.ProtoReflect().Descriptor().FullName()) == line.Message {
			s.request = known
		}
	}
	if s.request == nil {
		kind, err := typeNamed(line.Message)
		if err != nil {
			return err
		}
		s.request = kind
	}
	return protojson.Unmarshal(line.Request, s.request)
}

// String is one line for a person.
func (s step) String() string {
	text := s.kind
	if s.as != "" {
		text += " as " + s.as
	}
	if s.request != nil {
		text += " " + shown(s.request)
	}
	return text
}
