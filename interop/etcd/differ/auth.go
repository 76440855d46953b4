package main

import (
	"bytes"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/reflect/protoreflect"

	"satrap.invalid/interop/etcd/internal/ring"
)

// rootPassword never changes, so that every session can be undone.
const rootPassword = ring.RootPassword

var (
	someUsers = []string{"alice", "bob", "carol", "root"}
	someRoles = []string{"reader", "writer", "root", "nobody"}
)

// rooting adds the user and the role that authentication needs.
func rooting() []step {
	return []step{
		call(&pb.AuthEnableRequest{}),
		call(&pb.AuthUserAddRequest{Name: "root", Password: rootPassword, Options: &authpb.UserAddOptions{}}),
		call(&pb.AuthRoleAddRequest{Name: "root"}),
		call(&pb.AuthEnableRequest{}),
		call(&pb.AuthUserGrantRoleRequest{User: "root", Role: "root"}),
	}
}

// enabling turns authentication on.
func enabling() []step {
	return []step{
		call(&pb.AuthStatusRequest{}),
		call(&pb.AuthEnableRequest{}),
		call(&pb.AuthEnableRequest{}),
		call(&pb.AuthenticateRequest{Name: "root", Password: rootPassword}),
		call(&pb.AuthStatusRequest{}).by("root"),
	}
}

// disabling turns it off and removes every user and role. Some may not exist.
func disabling() []step {
	steps := []step{
		call(&pb.AuthenticateRequest{Name: "root", Password: rootPassword}),
		call(&pb.AuthUserListRequest{}).by("root"),
		call(&pb.AuthRoleListRequest{}).by("root"),
		call(&pb.AuthDisableRequest{}).by("root"),
		call(&pb.AuthDisableRequest{}),
		call(&pb.AuthStatusRequest{}),
	}
	for _, user := range someUsers {
		steps = append(steps, call(&pb.AuthUserGetRequest{Name: user}), call(&pb.AuthUserDeleteRequest{Name: user}))
	}
	for _, role := range someRoles {
		steps = append(steps, call(&pb.AuthRoleGetRequest{Role: role}), call(&pb.AuthRoleDeleteRequest{Role: role}))
	}
	return steps
}

// before is what a session does to users and roles while authentication is still off.
var before = []chosen{{1, (*generator).authSteps}}

// guarded is what a session does while authentication is on.
var guarded = []chosen{
	{200, func(g *generator) []step { return g.asAnyUser(call(g.putRequest())) }},
	{200, func(g *generator) []step { return g.asAnyUser(call(g.rangeRequest())) }},
	{60, func(g *generator) []step { return g.asAnyUser(call(g.deleteRequest())) }},
	{200, func(g *generator) []step { return g.asAnyUser(call(g.txnRequest(0))) }},
	{40, func(g *generator) []step { return g.asAnyUser(g.streamStep()) }},
	{80, func(g *generator) []step { return g.asAnyUser(g.leaseSteps()...) }},
	{40, func(g *generator) []step {
		return g.asAnyUser(step{kind: kindWatchOnce, request: watchCreate(g.watchRequest())})
	}},
	{3, func(g *generator) []step { return g.asAnyUser(g.compactSteps()...) }},
	{3, func(g *generator) []step { return g.asAnyUser(g.hashSteps()...) }},
	{180, func(g *generator) []step { return g.asAnyUser(g.authSteps()...) }},
}

// asAnyUser sends steps with the token of root, of a user, without one, or with one never issued.
func (g *generator) asAnyUser(steps ...step) []step {
	who := pick(g, "root", "root", "root", "alice", "alice", "bob", "bob", "carol")
	if g.oneIn(12) {
		who = pick(g, "", "mallory")
	}
	for i, one := range steps {
		grant, isGrant := one.request.(*pb.LeaseGrantRequest)
		if isGrant && (grant.TTL < ttlSlack || grant.ID == 0) {
			// What must be undone is done as one who may undo it.
			who = "root"
		}
		if one.kind != kindBarrier {
			steps[i] = one.by(who)
			if who != "root" {
				straighten(one.request.ProtoReflect())
			}
		}
	}
	return steps
}

// straighten leaves out the ends of ranges that end before they start. Whether etcd permits such a
// range depends on the shape of the tree that holds the permissions of the user.
func straighten(message protoreflect.Message) {
	fields := message.Descriptor().Fields()
	if key, end := fields.ByName("key"), fields.ByName("range_end"); key != nil && end != nil {
		last := message.Get(end).Bytes()
		if !bytes.Equal(last, []byte{0}) && bytes.Compare(last, message.Get(key).Bytes()) < 0 {
			message.Clear(end)
		}
	}
	message.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case field.Kind() == protoreflect.MessageKind && field.IsList():
			for i := range value.List().Len() {
				straighten(value.List().Get(i).Message())
			}
		case field.Kind() == protoreflect.MessageKind:
			straighten(value.Message())
		}
		return true
	})
}

func (g *generator) password() string { return pick(g, "one", "one", "two", "") }

func (g *generator) permission() *authpb.Permission {
	key := g.key()
	return &authpb.Permission{
		PermType: pick(g, authpb.Permission_READ, authpb.Permission_WRITE, authpb.Permission_READWRITE),
		Key:      key, RangeEnd: g.end(key),
	}
}

// authSteps is one step about users, roles and passwords.
func (g *generator) authSteps() []step {
	user, role := pick(g, someUsers...), pick(g, someRoles...)
	if g.oneIn(40) {
		user, role = "", ""
	}
	switch g.IntN(20) {
	case 0:
		options := &authpb.UserAddOptions{NoPassword: g.oneIn(4)}
		if g.oneIn(4) {
			options = nil
		}
		password := g.password()
		if user == "root" {
			// Shrinking a session must still be able to undo it.
			password, options = rootPassword, nil
		}
		return []step{call(&pb.AuthUserAddRequest{Name: user, Password: password, Options: options})}
	case 1:
		return []step{call(&pb.AuthUserGetRequest{Name: user})}
	case 2:
		return []step{call(&pb.AuthUserListRequest{})}
	case 3:
		if user == "root" {
			return []step{call(&pb.AuthRoleListRequest{})}
		}
		return []step{call(&pb.AuthUserDeleteRequest{Name: user})}
	case 4:
		if user == "root" {
			return []step{call(&pb.AuthStatusRequest{})}
		}
		return []step{call(&pb.AuthUserChangePasswordRequest{Name: user, Password: g.password()})}
	case 5, 6, 7:
		return []step{call(&pb.AuthUserGrantRoleRequest{User: user, Role: role})}
	case 8:
		if user == "root" {
			role = "reader"
		}
		return []step{call(&pb.AuthUserRevokeRoleRequest{Name: user, Role: role})}
	case 9, 10:
		return []step{call(&pb.AuthRoleAddRequest{Name: role})}
	case 11:
		return []step{call(&pb.AuthRoleGetRequest{Role: role})}
	case 12:
		if role == "root" {
			return []step{call(&pb.AuthRoleGetRequest{Role: role})}
		}
		return []step{call(&pb.AuthRoleDeleteRequest{Role: role})}
	case 13, 14, 15:
		return []step{call(&pb.AuthRoleGrantPermissionRequest{Name: role, Perm: g.permission()})}
	case 16:
		permission := g.permission()
		return []step{call(&pb.AuthRoleRevokePermissionRequest{
			Role: role, Key: permission.Key, RangeEnd: permission.RangeEnd})}
	default:
		return []step{call(&pb.AuthenticateRequest{Name: user, Password: g.password()})}
	}
}
