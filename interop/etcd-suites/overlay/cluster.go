//go:build satrap_ring

// Package integration, in the place of the file of etcd's test framework that starts etcd in the
// process of the test: here a cluster is a ring of Satrap, of real processes. Everything else of that
// package is etcd's own. It has what the suites that interop/etcd-suites runs ask of a cluster and no
// more; `exceptions` beside this folder names the tests that ask for more.
//
// The environment says where things are: SATRAP_BINARY, SATRAP_START_RING (interop/start-ring), and
// SATRAP_RINGS, the folder for the rings. A ring is fresh for each cluster, because many tests count
// revisions from the first.
package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/testutil"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/pkg/v3/grpctesting"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3rpc"
	framework "go.etcd.io/etcd/tests/v3/framework/config"
	"go.etcd.io/etcd/tests/v3/framework/testutils"
)

const (
	// RequestWaitTimeout is how long a test waits for one request, or for a leader to be lost.
	RequestWaitTimeout = 5 * time.Second
	// RequestTimeout bounds what the framework itself waits for.
	RequestTimeout = 30 * time.Second
	// pause is between two looks at something that cannot be waited for.
	pause = 10 * time.Millisecond
)

// TestTLSInfo are the certificates that come with the tests.
var TestTLSInfo = transport.TLSInfo{
	KeyFile:        testutils.MustAbsPath("../fixtures/server.key.insecure"),
	CertFile:       testutils.MustAbsPath("../fixtures/server.crt"),
	TrustedCAFile:  testutils.MustAbsPath("../fixtures/ca.crt"),
	ClientCertAuth: true,
}

// ClusterConfig says what a test asks for. The ring has no setting that answers to some of these; the
// list of exceptions names the tests that need them.
type ClusterConfig struct {
	Size                        int
	PeerTLS, ClientTLS          *transport.TLSInfo
	AuthToken                   string
	QuotaBackendBytes           int64
	MaxRequestBytes             uint
	SnapshotCount               uint64
	ClientMaxCallSendMsgSize    int
	ClientMaxCallRecvMsgSize    int
	UseIP, UseBridge, UseTCP    bool
	WatchProgressNotifyInterval time.Duration
	DisableStrictReconfigCheck  bool
}

// Cluster is a ring.
type Cluster struct {
	Cfg     *ClusterConfig
	Members []*Member
	folder  string
	mu      sync.Mutex
}

// GRPCAPI has a client of each service.
type GRPCAPI struct {
	Cluster     pb.ClusterClient
	KV          pb.KVClient
	Lease       pb.LeaseClient
	Watch       pb.WatchClient
	Maintenance pb.MaintenanceClient
	Auth        pb.AuthClient
	Lock        v3lockpb.LockClient
	Election    v3electionpb.ElectionClient
}

// NewCluster is a fresh ring whose members agree on a leader.
func NewCluster(t testutil.TB, asked *ClusterConfig) *Cluster {
	t.Helper()
	assertInTestContext(t)
	folder, addresses, err := take(asked)
	if err != nil {
		t.Fatal(err)
	}
	c := &Cluster{Cfg: asked, folder: folder}
	for i, address := range addresses {
		m := &Member{address: address, folder: folder, asked: asked, stopped: make(chan struct{})}
		m.Name = fmt.Sprintf("ring-%c", 'a'+i)
		m.Logger = zap.NewNop()
		m.TickMs, m.ElectionTicks = 100, 10
		c.Members = append(c.Members, m)
		if err := m.reach(); err != nil {
			c.Terminate(t)
			t.Fatal(err)
		}
	}
	if _, err := leader(c.Members); err != nil {
		c.Terminate(t)
		t.Fatal(err)
	}
	if asked.QuotaBackendBytes > 0 {
		if err := c.limit(asked.QuotaBackendBytes); err != nil {
			c.Terminate(t)
			t.Fatal(err)
		}
	}
	return c
}

// spares are rings that were started before they are needed, by their sizes.
var spares = map[int]*starting{}

// starting is a ring on its way.
type starting struct {
	folder  string
	process *exec.Cmd
}

// take returns a fresh ring as asked for: its folder and the addresses of its members. The next one of
// its size starts meanwhile.
func take(asked *ClusterConfig) (string, []string, error) {
	security := "plain"
	if asked.ClientTLS != nil {
		security = strings.Join([]string{asked.ClientTLS.CertFile, asked.ClientTLS.KeyFile, asked.ClientTLS.TrustedCAFile}, ",")
	}
	var settings []string
	interval := asked.WatchProgressNotifyInterval
	if inside := v3rpc.GetProgressReportInterval(); interval == 0 && inside < time.Minute {
		// The test has set it for etcd in its own process.
		interval = inside
	}
	if interval != 0 {
		settings = append(settings, fmt.Sprint("watch_progress_interval_s = ", int64(interval/time.Second)))
	}
	usual := security == "plain" && len(settings) == 0
	var ring *starting
	if usual {
		ring = spares[asked.Size]
		delete(spares, asked.Size)
	}
	if ring == nil {
		var err error
		if ring, err = start(asked.Size, security, settings...); err != nil {
			return "", nil, err
		}
	}
	if err := ring.process.Wait(); err != nil {
		text, _ := os.ReadFile(ring.folder + "/start")
		return "", nil, fmt.Errorf("no ring: %w\n%s", err, text)
	}
	text, err := os.ReadFile(ring.folder + "/endpoints")
	if err != nil {
		return "", nil, err
	}
	if usual {
		if spares[asked.Size], err = start(asked.Size, security); err != nil {
			return "", nil, err
		}
	}
	return ring.folder, strings.Split(strings.TrimSpace(string(text)), ","), nil
}

// start starts a ring and does not wait for it. Its output goes to files, so that no goroutine copies
// it: the tests count goroutines.
func start(size int, security string, settings ...string) (*starting, error) {
	folder, err := os.MkdirTemp(os.Getenv("SATRAP_RINGS"), "ring-")
	if err != nil {
		return nil, err
	}
	words := append([]string{os.Getenv("SATRAP_BINARY"), folder, security, strconv.Itoa(size)}, settings...)
	process := exec.Command(os.Getenv("SATRAP_START_RING"), words...)
	endpoints, err := os.Create(folder + "/endpoints")
	if err != nil {
		return nil, err
	}
	defer endpoints.Close()
	failures, err := os.Create(folder + "/start")
	if err != nil {
		return nil, err
	}
	defer failures.Close()
	process.Stdout, process.Stderr = endpoints, failures
	// That of the test may be gone before the ring is there.
	process.Dir = folder
	return &starting{folder, process}, process.Start()
}

// limit sets the total quota, which is what etcd's flag sets.
func (c *Cluster) limit(bytes int64) error {
	body := fmt.Sprintf(`{"bytes_max":"%d"}`, bytes)
	response, err := http.Post("http://"+c.Members[0].address+"/v1/quota/set", "application/json", strings.NewReader(body))
	if err != nil {
		return err
	}
	defer response.Body.Close()
	defer http.DefaultClient.CloseIdleConnections()
	if text, err := io.ReadAll(response.Body); err != nil || response.StatusCode != http.StatusOK {
		return fmt.Errorf("set the quota: %s %s %w", response.Status, text, err)
	}
	return nil
}

// Terminate ends all members and removes what they stored.
func (c *Cluster) Terminate(t testutil.TB) {
	for _, m := range c.Members {
		if m.Client != nil {
			if err := m.Client.Close(); err != nil && t != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
		m.closeBridge()
		if err := m.kill(); err != nil && t != nil {
			t.Error(err)
		}
	}
	if err := os.RemoveAll(c.folder); err != nil && t != nil {
		t.Error(err)
	}
}

// Client is the client of a member.
func (c *Cluster) Client(i int) *clientv3.Client { return c.Members[i].Client }

// RandClient is the client of any member.
func (c *Cluster) RandClient() *clientv3.Client { return c.Members[rand.IntN(len(c.Members))].Client }

// TakeClient leaves it to the caller to close a client.
func (c *Cluster) TakeClient(i int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Members[i].Client = nil
}

// Endpoints are those of all members.
func (c *Cluster) Endpoints() []string {
	var all []string
	for _, m := range c.Members {
		all = append(all, m.GRPCURL)
	}
	return all
}

// ClusterClient is a new client of all members, closed at the end of the test.
func (c *Cluster) ClusterClient(tb testing.TB, options ...framework.ClientOption) (*clientv3.Client, error) {
	asked, err := c.Members[0].clientConfig()
	if err != nil {
		return nil, err
	}
	asked.Endpoints = c.Endpoints()
	for _, option := range options {
		option(asked)
	}
	client, err := newClientV3(*asked)
	if err == nil {
		tb.Cleanup(func() { _ = client.Close() })
	}
	return client, err
}

// NewClientV3 is a new client of one member.
func (c *Cluster) NewClientV3(i int) (*clientv3.Client, error) { return NewClientV3(c.Members[i]) }

// NewClientV3 is a new client of a member.
func NewClientV3(m *Member) (*clientv3.Client, error) {
	asked, err := m.clientConfig()
	if err != nil {
		return nil, err
	}
	return newClientV3(*asked)
}

// MakeSingleNodeClients makes clients of the first member, and keeps them in a list.
func MakeSingleNodeClients(t testutil.TB, c *Cluster, clients *[]*clientv3.Client) func() *clientv3.Client {
	return makeClients(t, c, clients, func() int { return 0 })
}

// MakeMultiNodeClients makes clients of any member, and keeps them in a list.
func MakeMultiNodeClients(t testutil.TB, c *Cluster, clients *[]*clientv3.Client) func() *clientv3.Client {
	return makeClients(t, c, clients, func() int { return rand.IntN(len(c.Members)) })
}

func makeClients(t testutil.TB, c *Cluster, clients *[]*clientv3.Client, which func() int) func() *clientv3.Client {
	var mu sync.Mutex
	*clients = nil
	return func() *clientv3.Client {
		client, err := c.NewClientV3(which())
		if err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		defer mu.Unlock()
		*clients = append(*clients, client)
		return client
	}
}

// CloseClients closes all of a list.
func CloseClients(t testutil.TB, clients []*clientv3.Client) {
	for _, client := range clients {
		if err := client.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// WithAuth logs a client in.
func WithAuth(user, password string) framework.ClientOption {
	return func(c any) { c.(*clientv3.Config).Username, c.(*clientv3.Config).Password = user, password }
}

// WithAuthToken gives a client the token of a login.
func WithAuthToken(token string) framework.ClientOption {
	return func(c any) { c.(*clientv3.Config).Token = token }
}

// WithEndpoints says where a client goes.
func WithEndpoints(endpoints []string) framework.ClientOption {
	return func(c any) { c.(*clientv3.Config).Endpoints = endpoints }
}

// WaitLeader returns the place of the leader, once all members agree on it.
func (c *Cluster) WaitLeader(tb testing.TB) int { return c.WaitMembersForLeader(tb, c.Members) }

// WaitMembersForLeader returns the place of the leader among members, once they agree on it.
func (c *Cluster) WaitMembersForLeader(tb testing.TB, members []*Member) int {
	place, err := leader(members)
	if err != nil {
		tb.Fatal(err)
	}
	return place
}

// leader asks the members that run until they name the same one.
func leader(members []*Member) (int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), RequestTimeout)
	defer cancel()
	for ; ctx.Err() == nil; time.Sleep(pause) {
		running := 0
		named := map[uint64]int{}
		for _, m := range members {
			if m.hasStopped() {
				continue
			}
			running++
			if answer, err := askStatus(ctx, m.Client); err == nil {
				named[answer.Leader]++
			}
		}
		for place, m := range members {
			if !m.hasStopped() && named[uint64(m.id)] == running {
				return place, nil
			}
		}
	}
	return 0, errors.New("the members do not name the same leader")
}

// The rest is here for the compiler: the list of exceptions has every test that calls it, because a
// ring of processes cannot be cut apart or extended from within a test.

// errInProcess is how a call ends that only works with etcd in the process of the test.
const errInProcess = "this test needs etcd in its own process and belongs into interop/etcd-suites/exceptions"

// InjectPartition cuts the member off.
func (m *Member) InjectPartition(t testutil.TB, _ ...*Member) { t.Fatal(errInProcess) }

// RecoverPartition undoes it.
func (m *Member) RecoverPartition(t testutil.TB, _ ...*Member) { t.Fatal(errInProcess) }

// ReadyNotify tells when a new member takes part.
func (m *Member) ReadyNotify() <-chan struct{} { panic(errInProcess) }

// RecordedRequests are those that the member has seen.
func (m *Member) RecordedRequests() []grpctesting.RequestInfo { panic(errInProcess) }

// AddAndLaunchLearnerMember starts one more member.
func (c *Cluster) AddAndLaunchLearnerMember(t testutil.TB) { t.Fatal(errInProcess) }

// GetLearnerMembers are the members without a vote.
func (c *Cluster) GetLearnerMembers() ([]*pb.Member, error) { return nil, errors.New(errInProcess) }
