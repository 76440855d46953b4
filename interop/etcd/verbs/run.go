package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"satrap.invalid/interop/etcd/internal/ring"
)

const (
	// commandMax is how long one command may take.
	commandMax = 20 * time.Second
	// freePeer is where no member listens. Port 1 is reserved, so none ever will.
	freePeer = "https://127.0.0.1:1"
	// ripePeer is another such address: etcd makes ids of the address and the second.
	ripePeer = "https://127.0.0.1:2"
)

// side is one cluster, as etcdctl sees it.
type side struct {
	target     ring.Target
	connection *grpc.ClientConn
	mask       mask
	// folder is for the files of this side alone.
	folder string
	// mirror is an etcd of one member to mirror into.
	mirror  *ring.Etcd
	running map[string]*running
	// members are those it had in the beginning.
	members map[uint64]bool
	files   int
}

// output is what a command did.
type output struct {
	text string
	code int
}

func newSide(target ring.Target, binary, folder string) (*side, error) {
	connections, err := target.Dial()
	if err != nil {
		return nil, err
	}
	s := &side{
		target: target, connection: connections[0], folder: filepath.Join(folder, target.Name),
		mask: mask{names: map[string]string{}}, running: map[string]*running{}, members: map[uint64]bool{},
	}
	if err := os.Mkdir(s.folder, 0o755); err != nil {
		return nil, err
	}
	if s.mirror, err = ring.StartEtcd(binary, 1, ""); err != nil {
		return nil, err
	}
	reply, err := s.memberList()
	if err != nil {
		return nil, err
	}
	s.mask.number(reply.Header.ClusterId, "<cluster>")
	for _, member := range reply.Members {
		s.members[member.ID] = true
		s.mask.number(member.ID, "<member>")
		if member.Name != "" {
			s.mask.members = append(s.mask.members, regexp.QuoteMeta(member.Name))
		}
	}
	return s, nil
}

func (s *side) memberList() (*pb.MemberListResponse, error) {
	ctx, cancel := context.WithTimeout(context.Background(), commandMax)
	defer cancel()
	return pb.NewClusterClient(s.connection).MemberList(ctx, &pb.MemberListRequest{Linearizable: true})
}

// ripen waits until a fresh etcd takes a new member: it first wants to have seen the others for a
// while.
func (s *side) ripen() error {
	ctx, cancel := context.WithTimeout(context.Background(), commandMax)
	defer cancel()
	cluster := pb.NewClusterClient(s.connection)
	for {
		added, err := cluster.MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: []string{ripePeer}, IsLearner: true})
		if err == nil {
			_, err = cluster.MemberRemove(ctx, &pb.MemberRemoveRequest{ID: added.Member.ID})
			return err
		}
		if ctx.Err() != nil {
			return err
		}
	}
}

// newest is the member that was added since the beginning, or 0.
func (s *side) newest() uint64 {
	reply, err := s.memberList()
	if err != nil {
		return 0
	}
	for _, member := range reply.Members {
		if !s.members[member.ID] {
			s.mask.number(member.ID, "<newcomer>")
			return member.ID
		}
	}
	return 0
}

// other is a member that does not lead, and the endpoint of the one that does.
func (s *side) other() (uint64, string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), commandMax)
	defer cancel()
	status, err := pb.NewMaintenanceClient(s.connection).Status(ctx, &pb.StatusRequest{})
	if err != nil {
		return 0, "", err
	}
	reply, err := s.memberList()
	if err != nil {
		return 0, "", err
	}
	var other uint64
	var endpoint string
	for _, member := range reply.Members {
		switch {
		case member.ID == status.Leader && len(member.ClientURLs) > 0:
			endpoint = member.ClientURLs[0]
		case !member.IsLearner:
			other = member.ID
		}
	}
	return other, endpoint, nil
}

// followed remembers ids that a command made.
func (s *side) followed(values map[string]string, verb string) {
	switch verb {
	case "lease":
		ctx, cancel := context.WithTimeout(context.Background(), commandMax)
		defer cancel()
		reply, err := pb.NewLeaseClient(s.connection).LeaseLeases(ctx, &pb.LeaseLeasesRequest{})
		if err != nil {
			// With authentication on there is no user; {lease} stays what it was.
			return
		}
		for _, one := range reply.Leases {
			id := strconv.FormatInt(one.ID, 16)
			if s.mask.names[id] == "" {
				values["lease"] = id
				s.mask.number(uint64(one.ID), "<lease>")
			}
		}
	case "member":
		if id := s.newest(); id != 0 {
			values["member"] = strconv.FormatUint(id, 16)
		}
	}
}

// aboutMembers are the verbs that are about the cluster rather than about what it stores.
var aboutMembers = map[string]bool{
	"endpoint": true, "member": true, "alarm": true, "defrag": true, "move-leader": true, "downgrade": true,
}

// arguments are the words of a command with everything filled in.
func (s *side) arguments(c command, format string, base int64, values map[string]string) ([]string, error) {
	// What reads without the log may be older on another member, so most verbs stay with one.
	endpoints := s.target.Endpoints[0]
	if aboutMembers[c.words[0]] {
		endpoints = strings.Join(s.target.Endpoints, ",")
	}
	var words []string
	for _, word := range c.words {
		word, err := ring.Revisions(word, base)
		if err != nil {
			return nil, err
		}
		if strings.Contains(word, "{other}") {
			other, endpoint, err := s.other()
			if err != nil {
				return nil, err
			}
			// Only the leader hands over.
			word, endpoints = strconv.FormatUint(other, 16), endpoint
		}
		if strings.Contains(word, "{file}") {
			s.files++
			word = filepath.Join(s.folder, fmt.Sprintf("file-%d", s.files))
			s.mask.names[word] = "<file>"
		}
		for name, value := range values {
			word = strings.ReplaceAll(word, "{"+name+"}", value)
		}
		words = append(words, word)
	}
	if c.mirror != "" {
		words = append(words, s.mirror.Target.Endpoints[0])
	}
	flags := []string{"--endpoints=" + endpoints, "-w=" + format}
	if s.target.CA != "" {
		flags = append(flags, "--cacert="+s.target.CA)
	}
	if s.target.Cert != "" {
		flags = append(flags, "--cert="+s.target.Cert, "--key="+s.target.Key)
	}
	return append(flags, words...), nil
}

// run does one command.
func (s *side) run(binary string, c command, format string, base int64, values map[string]string) (output, error) {
	if c.stop != "" {
		s.running[c.stop].end()
		return output{}, nil
	}
	arguments, err := s.arguments(c, format, base, values)
	if err != nil {
		return output{}, err
	}
	stdin, err := ring.Revisions(c.stdin, base)
	if err != nil {
		return output{}, err
	}
	process := begin(binary, arguments, stdin)
	until, err := ring.Revisions(c.until, base)
	if err != nil {
		return output{}, err
	}
	switch {
	case c.mirror != "":
		return s.mirrored(process, c.mirror), nil
	case c.until == "":
		return process.finish(), nil
	}
	text := process.await(until)
	if c.start != "" {
		s.running[c.start] = process
	} else {
		process.end()
	}
	return output{text: text}, nil
}

// running is a command under way.
type running struct {
	process *exec.Cmd
	mu      sync.Mutex
	text    bytes.Buffer
	changed chan struct{}
	done    chan struct{}
}

// Write takes what the command prints.
func (r *running) Write(some []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case r.changed <- struct{}{}:
	default:
	}
	return r.text.Write(some)
}

func (r *running) printed() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.String()
}

func begin(binary string, arguments []string, stdin string) *running {
	r := &running{
		process: exec.Command(binary, arguments...),
		changed: make(chan struct{}, 1), done: make(chan struct{}),
	}
	r.process.Env = append(os.Environ(), "ETCDCTL_API=3")
	r.process.Stdout, r.process.Stderr = r, r
	// Read from a file it would end, and etcdctl with it.
	input, writer, err := os.Pipe()
	if err == nil {
		r.process.Stdin = input
		err = r.process.Start()
	}
	if err != nil {
		fmt.Fprintf(r, "cannot start: %v", err)
		close(r.done)
		return r
	}
	_ = input.Close()
	_, _ = writer.WriteString(stdin)
	if stdin == "" || !isInteractive(arguments) {
		_ = writer.Close()
	}
	go func() {
		_ = r.process.Wait()
		_ = writer.Close()
		close(r.done)
	}()
	return r
}

func isInteractive(arguments []string) bool {
	for _, word := range arguments {
		if word == "-i" {
			return true
		}
	}
	return false
}

// await waits until the command has printed the text, plainly or as JSON writes bytes, and returns
// what it printed up to there. If the command ends first, it returns all of it.
func (r *running) await(text string) string {
	deadline := time.After(commandMax)
	// The encoding of the text alone is not the begin of that of a longer one, so its last group of
	// three bytes is left out.
	encoded := base64.StdEncoding.EncodeToString([]byte(text[:len(text)/3*3]))
	for {
		printed := r.printed()
		for _, form := range []string{text, encoded} {
			if at := strings.Index(printed, form); at >= 0 {
				return printed[:at+len(form)]
			}
		}
		select {
		case <-r.changed:
		case <-r.done:
			return r.printed()
		case <-deadline:
			return r.printed() + "NEVER PRINTED: " + text
		}
	}
}

// finish waits until the command ends by itself.
func (r *running) finish() output {
	select {
	case <-r.done:
	case <-time.After(commandMax):
		fmt.Fprintln(r, "DID NOT END")
		_ = r.process.Process.Kill()
		<-r.done
	}
	return output{r.printed(), r.process.ProcessState.ExitCode()}
}

// end interrupts the command. How it ends then is not compared.
func (r *running) end() {
	_ = r.process.Process.Signal(syscall.SIGINT)
	r.finish()
}
