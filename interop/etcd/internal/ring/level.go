package ring

import (
	"context"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// RootPassword is what every program of this module gives the user root.
const RootPassword = "root's"

const (
	// alignMax is by how many revisions two servers may be apart to be made equal.
	alignMax = 500_000
	// alignAtOnce is how many writes of an alignment are under way at once.
	alignAtOnce = 128
	// levelMax is how long one server may take to be emptied or aligned.
	levelMax = 2 * time.Minute
	// TestMember is the member that tests raise alarms for. No cluster has it.
	TestMember = 7
)

// Level empties both servers, brings them to the same revision, compacts there, and returns it:
// from then on, equal requests have equal answers.
func Level(a, b *grpc.ClientConn) (int64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), levelMax)
	defer cancel()
	for _, connection := range []*grpc.ClientConn{a, b} {
		if err := empty(ctx, connection); err != nil {
			return 0, fmt.Errorf("cannot empty %s: %w", connection.Target(), err)
		}
	}
	revision, err := align(ctx, a, b)
	if err != nil {
		return 0, err
	}
	for _, connection := range []*grpc.ClientConn{a, b} {
		_, err := pb.NewKVClient(connection).Compact(ctx, &pb.CompactionRequest{Revision: revision})
		if err != nil && status.Code(err) != codes.OutOfRange {
			return 0, fmt.Errorf("cannot compact %s: %w", connection.Target(), err)
		}
	}
	return revision, nil
}

// empty turns authentication off and removes users, roles, alarms, leases and keys.
func empty(ctx context.Context, connection *grpc.ClientConn) error {
	auth, lease := pb.NewAuthClient(connection), pb.NewLeaseClient(connection)
	state, err := auth.AuthStatus(ctx, &pb.AuthStatusRequest{})
	if err != nil || state.Enabled {
		if err := disable(ctx, auth); err != nil {
			return err
		}
	}
	maintenance := pb.NewMaintenanceClient(connection)
	for _, alarm := range []pb.AlarmType{pb.AlarmType_NOSPACE, pb.AlarmType_CORRUPT} {
		disarm := &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, Alarm: alarm, MemberID: TestMember}
		if _, err := maintenance.Alarm(ctx, disarm); err != nil {
			return err
		}
	}
	users, err := auth.UserList(ctx, &pb.AuthUserListRequest{})
	if err != nil {
		return err
	}
	for _, user := range users.Users {
		if _, err := auth.UserDelete(ctx, &pb.AuthUserDeleteRequest{Name: user}); err != nil {
			return err
		}
	}
	roles, err := auth.RoleList(ctx, &pb.AuthRoleListRequest{})
	if err != nil {
		return err
	}
	for _, role := range roles.Roles {
		if _, err := auth.RoleDelete(ctx, &pb.AuthRoleDeleteRequest{Role: role}); err != nil {
			return err
		}
	}
	leases, err := lease.LeaseLeases(ctx, &pb.LeaseLeasesRequest{})
	if err != nil {
		return err
	}
	for _, one := range leases.Leases {
		_, err := lease.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: one.ID})
		// It may have run out by itself since it was listed.
		if err != nil && status.Code(err) != codes.NotFound {
			return err
		}
	}
	all := &pb.DeleteRangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}
	_, err = pb.NewKVClient(connection).DeleteRange(ctx, all)
	return err
}

func disable(ctx context.Context, auth pb.AuthClient) error {
	reply, err := auth.Authenticate(ctx, &pb.AuthenticateRequest{Name: "root", Password: RootPassword})
	if err != nil {
		return err
	}
	ctx = metadata.AppendToOutgoingContext(ctx, "token", reply.Token)
	_, err = auth.AuthDisable(ctx, &pb.AuthDisableRequest{})
	return err
}

// align writes to the server that is behind until both have the same revision. A gap of one is
// first made wider: one revision alone cannot make a key and remove it.
func align(ctx context.Context, a, b *grpc.ClientConn) (int64, error) {
	for {
		x, err := revision(ctx, a)
		if err != nil {
			return 0, err
		}
		y, err := revision(ctx, b)
		if err != nil {
			return 0, err
		}
		behind, ahead, gap := a, b, y-x
		if gap < 0 {
			behind, ahead, gap = b, a, -gap
		}
		switch {
		case gap == 0:
			return x, nil
		case gap == 1:
			err = advance(ctx, ahead, 2)
		case gap > alignMax:
			err = fmt.Errorf("%s is %d revisions behind: start both afresh", behind.Target(), gap)
		default:
			err = advance(ctx, behind, gap)
		}
		if err != nil {
			return 0, err
		}
	}
}

func revision(ctx context.Context, connection *grpc.ClientConn) (int64, error) {
	reply, err := pb.NewKVClient(connection).Range(ctx, &pb.RangeRequest{Key: []byte("x")})
	return reply.GetHeader().GetRevision(), err
}

// advance makes the revision grow by exactly so many, at least two, and leaves no key behind.
func advance(ctx context.Context, connection *grpc.ClientConn, by int64) error {
	kv, key := pb.NewKVClient(connection), []byte("align")
	results := make(chan error, alignAtOnce)
	for left := by - 1; left > 0; left -= alignAtOnce {
		count := min(left, alignAtOnce)
		for range count {
			go func() {
				_, err := kv.Put(ctx, &pb.PutRequest{Key: key})
				results <- err
			}()
		}
		var failed error
		for range count {
			if err := <-results; err != nil {
				failed = err
			}
		}
		if failed != nil {
			return failed
		}
	}
	_, err := kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: key})
	return err
}
