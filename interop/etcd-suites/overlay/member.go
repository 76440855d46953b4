//go:build satrap_ring

package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/testutil"
	"go.etcd.io/etcd/client/pkg/v3/types"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/config"
	"go.etcd.io/etcd/server/v3/etcdserver"
)

// Member is one process of a ring.
type Member struct {
	config.ServerConfig
	// GRPCURL is where clients find it, or its bridge.
	GRPCURL string
	// Client talks to this member only.
	Client *clientv3.Client
	// Server and ServerClient would be the etcd in this process, of which there is none.
	Server       *etcdserver.EtcdServer
	ServerClient *clientv3.Client

	id      types.ID
	address string
	folder  string
	bridge  *bridge
	asked   *ClusterConfig
	stopped chan struct{}
}

func askStatus(ctx context.Context, client *clientv3.Client) (*pb.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, RequestWaitTimeout)
	defer cancel()
	return pb.NewMaintenanceClient(client.ActiveConnection()).Status(ctx, &pb.StatusRequest{})
}

// ID is the member's number.
func (m *Member) ID() types.ID { return m.id }

// URL is where the member serves HTTP.
func (m *Member) URL() string { return m.scheme() + m.address }

// GRPCPortNumber is the port at which clients find the member.
func (m *Member) GRPCPortNumber() string { return m.GRPCURL[strings.LastIndex(m.GRPCURL, ":")+1:] }

// Bridge is between the clients and the member.
func (m *Member) Bridge() Bridge {
	if m.bridge == nil {
		panic("the test asked for no bridge")
	}
	return m.bridge
}

func (m *Member) scheme() string {
	if m.asked.ClientTLS != nil {
		return "https://"
	}
	return "http://"
}

// openBridge makes the bridge, if one was asked for. It listens on a file, which no other process can take
// while the member is stopped: a bridge ends with its member.
func (m *Member) openBridge() error {
	if !m.asked.UseBridge {
		return nil
	}
	listener, err := net.Listen("unix", m.file("bridge"))
	if err != nil {
		return err
	}
	m.bridge = newBridge(dialer(m.address), listener)
	m.GRPCURL = "unix://" + m.file("bridge")
	return nil
}

func (m *Member) closeBridge() {
	if m.bridge != nil {
		m.bridge.Close()
		m.bridge = nil
	}
}

// reach makes the bridge and the client, and learns the member's number.
func (m *Member) reach() error {
	m.GRPCURL = m.scheme() + m.address
	if err := m.openBridge(); err != nil {
		return err
	}
	var err error
	if m.Client, err = NewClientV3(m); err != nil {
		return err
	}
	answer, err := firstAnswer(m.Client)
	if err != nil {
		return fmt.Errorf("ask %s for its status: %w", m.Name, err)
	}
	m.id = types.ID(answer.Header.MemberId)
	return nil
}

// firstAnswer waits until a member that was started answers, with or without a leader. A refusal is an answer.
func firstAnswer(client *clientv3.Client) (*pb.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(context.Background(), RequestTimeout)
	defer cancel()
	for {
		answer, err := askStatus(ctx, client)
		if !isSilent(err) || ctx.Err() != nil {
			return answer, err
		}
		time.Sleep(pause)
	}
}

// isSilent is whether a call failed because no member answered it.
func isSilent(err error) bool {
	code := status.Code(err)
	return code == codes.Unavailable || code == codes.DeadlineExceeded
}

func (m *Member) clientConfig() (*clientv3.Config, error) {
	asked := &clientv3.Config{
		Endpoints:          []string{m.GRPCURL},
		DialTimeout:        RequestWaitTimeout,
		MaxCallSendMsgSize: m.asked.ClientMaxCallSendMsgSize,
		MaxCallRecvMsgSize: m.asked.ClientMaxCallRecvMsgSize,
		Logger:             m.Logger,
	}
	if m.asked.ClientTLS != nil {
		var err error
		if asked.TLS, err = m.asked.ClientTLS.ClientConfig(); err != nil {
			return nil, err
		}
		if m.asked.ClientTLS.TrustedCAFile == "" {
			// etcd asks for no certificate then, and so ignores the one of its own that the client shows.
			asked.TLS.Certificates, asked.TLS.GetClientCertificate = nil, nil
		}
	}
	return asked, nil
}

// dialer connects a bridge with a member.
type dialer string

// Dial implements Dialer.
func (d dialer) Dial() (net.Conn, error) { return net.Dial("tcp", string(d)) }

// Stop ends the process at once; what it stored is kept.
func (m *Member) Stop(t testutil.TB) {
	m.closeBridge()
	if err := m.kill(); err != nil {
		t.Fatal(err)
	}
	close(m.stopped)
}

// StopNotify is closed once the process is gone.
func (m *Member) StopNotify() <-chan struct{} { return m.stopped }

func (m *Member) hasStopped() bool {
	select {
	case <-m.stopped:
		return true
	default:
		return false
	}
}

// Restart starts the process again and returns once it answers. It listens before it has read its log, and etcd
// has read its own when this method returns.
func (m *Member) Restart(testutil.TB) error {
	m.stopped = make(chan struct{})
	process := exec.Command(m.file("start"))
	if err := process.Start(); err != nil {
		return err
	}
	if err := os.WriteFile(m.file("pid"), []byte(strconv.Itoa(process.Process.Pid)+"\n"), 0o644); err != nil {
		return err
	}
	// A client that finds no listener waits a second until it tries again.
	for until := time.Now().Add(RequestTimeout); ; time.Sleep(pause) {
		connection, err := net.Dial("tcp", m.address)
		if err == nil {
			connection.Close()
			break
		}
		if time.Now().After(until) {
			return err
		}
	}
	if err := m.openBridge(); err != nil {
		return err
	}
	// The test may have closed the member's own client.
	client, err := NewClientV3(m)
	if err != nil {
		return err
	}
	if _, err = firstAnswer(client); !isSilent(err) {
		// With authentication enabled it refuses a client without a name.
		err = nil
	}
	return errors.Join(err, client.Close())
}

// WaitStarted waits until the member answers, if need be without a leader.
func (m *Member) WaitStarted(t testutil.TB) { waitForRead(t, m.Client.KV, clientv3.WithSerializable()) }

// WaitOK waits until the member knows a leader.
func (m *Member) WaitOK(t testutil.TB) {
	ctx, cancel := context.WithTimeout(context.Background(), RequestTimeout)
	defer cancel()
	for {
		answer, err := askStatus(ctx, m.Client)
		if err == nil && answer.Leader != 0 {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("%s has no leader: %v", m.Name, err)
		}
		time.Sleep(pause)
	}
}

// WaitClientV3 waits until a read is answered.
func WaitClientV3(t testutil.TB, kv clientv3.KV) { waitForRead(t, kv) }

func waitForRead(t testutil.TB, kv clientv3.KV, options ...clientv3.OpOption) {
	ctx, cancel := context.WithTimeout(context.Background(), RequestTimeout)
	defer cancel()
	for {
		_, err := kv.Get(ctx, "/", options...)
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("no answer: %v", err)
		}
		time.Sleep(pause)
	}
}

// Metric is the value of a number that the member shows and that has all the labels, or empty.
func (m *Member) Metric(name string, labels ...string) (string, error) {
	defer http.DefaultClient.CloseIdleConnections()
	response, err := http.Get(m.URL() + "/metrics")
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return "", err
	}
lines:
	for _, line := range strings.Split(string(text), "\n") {
		if !strings.HasPrefix(line, name) {
			continue
		}
		for _, label := range labels {
			if !strings.Contains(line, label) {
				continue lines
			}
		}
		return line[strings.LastIndex(line, " ")+1:], nil
	}
	return "", nil
}

// kill ends the process and returns once it is gone.
func (m *Member) kill() error {
	text, err := os.ReadFile(m.file("pid"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return err
	}
	if err := os.Remove(m.file("pid")); err != nil {
		return err
	}
	// It need not be a child of this process, so only a descriptor tells when it is gone.
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	defer unix.Close(process)
	if err := unix.PidfdSendSignal(process, unix.SIGKILL, nil, 0); err != nil {
		return err
	}
	for {
		_, err = unix.Poll([]unix.PollFd{{Fd: int32(process), Events: unix.POLLIN}}, -1)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	var status unix.WaitStatus
	_, _ = unix.Wait4(pid, &status, unix.WNOHANG, nil)
	return err
}

func (m *Member) file(end string) string { return filepath.Join(m.folder, m.Name+"."+end) }
