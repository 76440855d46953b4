// Command gateway sends the same HTTP requests to etcd's JSON gateway and to the ring under test,
// and compares status, type and body. What need not be equal is listed at `masked`.
package main

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"

	"satrap.invalid/interop/etcd/internal/ring"
)

//go:embed requests.txt
var requestsText string

// answerMax is how long one answer may take.
const answerMax = 20 * time.Second

// request is one line of the list.
type request struct {
	method, path, body, user string
	// lines is how many lines of a stream are read; 0 if the answer ends by itself.
	lines int
}

// side is one server.
type side struct {
	url    string
	client *http.Client
	bare   *grpc.ClientConn
	tokens map[string]string
	values map[string]string
}

// answer is what is compared.
type answer struct {
	status int
	kind   string
	body   string
}

func main() {
	var both ring.Both
	both.Register(flag.CommandLine)
	verbose := flag.Bool("verbose", false, "print every answer")
	flag.Parse()
	equal, err := compare(&both, *verbose)
	if err != nil {
		fmt.Fprintln(os.Stderr, "gateway:", err)
		os.Exit(2)
	}
	if !equal {
		os.Exit(1)
	}
}

func compare(both *ring.Both, verbose bool) (bool, error) {
	defer both.Stop()
	if err := both.Start(); err != nil {
		return false, err
	}
	var sides [2]*side
	for i, target := range []ring.Target{both.Etcd, both.Satrap} {
		var err error
		if sides[i], err = newSide(target); err != nil {
			return false, err
		}
	}
	requests, differences, base := 0, 0, int64(0)
	for number, line := range strings.Split(requestsText, "\n") {
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if strings.HasPrefix(line, "== ") {
			var err error
			if base, err = ring.Level(sides[0].bare, sides[1].bare); err != nil {
				return false, fmt.Errorf("before line %d: %w", number+1, err)
			}
			continue
		}
		requests++
		var answers [2]answer
		var running sync.WaitGroup
		for i, s := range sides {
			running.Go(func() { answers[i] = s.do(line, base) })
		}
		running.Wait()
		if verbose {
			fmt.Println(line, "\n  ", answers[0])
		}
		if answers[0] != answers[1] {
			differences++
			fmt.Printf("DIFFERENCE, requests.txt:%d: %s\n  etcd:   %v\n  satrap: %v\n", number+1, line, answers[0], answers[1])
		}
	}
	fmt.Printf("JSON gateway: %d requests, %d differences\n", requests, differences)
	return differences == 0, nil
}

func newSide(target ring.Target) (*side, error) {
	if err := target.LeaderFirst(); err != nil {
		return nil, err
	}
	config, err := target.TLS()
	if err != nil {
		return nil, err
	}
	connections, err := target.Dial()
	if err != nil {
		return nil, err
	}
	return &side{
		url: target.URL(), bare: connections[0], tokens: map[string]string{},
		client: &http.Client{Transport: &http.Transport{TLSClientConfig: config}},
		values: map[string]string{"password": ring.RootPassword, "lease": "1", "key": ""},
	}, nil
}

// parse reads a line of the list.
func parse(line string) (request, error) {
	r := request{method: http.MethodPost}
	word, rest, _ := strings.Cut(line, " ")
	switch word {
	case "as":
		r.user, rest, _ = strings.Cut(rest, " ")
		word, rest, _ = strings.Cut(rest, " ")
	case "stream":
		count, after, _ := strings.Cut(rest, " ")
		var err error
		if r.lines, err = strconv.Atoi(count); err != nil {
			return r, err
		}
		word, rest, _ = strings.Cut(after, " ")
	case http.MethodGet, http.MethodPut:
		r.method = word
		word, rest, _ = strings.Cut(rest, " ")
	}
	r.path, r.body = word, rest
	return r, nil
}

// do sends one request. What goes wrong on the way is the answer.
func (s *side) do(line string, base int64) answer {
	failed := func(err error) answer { return answer{body: "FAILED: " + err.Error()} }
	line, err := ring.Revisions(line, base)
	if err != nil {
		return failed(err)
	}
	for name, value := range s.values {
		line = strings.ReplaceAll(line, "{"+name+"}", value)
	}
	r, err := parse(line)
	if err != nil {
		return failed(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), answerMax)
	defer cancel()
	sent, err := http.NewRequestWithContext(ctx, r.method, s.url+r.path, strings.NewReader(r.body))
	if err != nil {
		return failed(err)
	}
	sent.Header.Set("Content-Type", "application/json")
	if r.user != "" {
		token, known := s.tokens[r.user]
		if !known {
			token = "no such token"
		}
		sent.Header.Set("Authorization", token)
	}
	response, err := s.client.Do(sent)
	if err != nil {
		return failed(err)
	}
	defer response.Body.Close()
	body, err := read(response.Body, r.lines)
	if err != nil {
		return failed(err)
	}
	s.remember(r, body)
	return answer{
		status: response.StatusCode, kind: response.Header.Get("Content-Type"), body: s.masked(r.path, body),
	}
}

// read takes a whole body, or some lines of one that goes on.
func read(body io.Reader, lines int) ([]byte, error) {
	if lines == 0 {
		return io.ReadAll(body)
	}
	var all []byte
	buffered := bufio.NewReader(body)
	for range lines {
		line, err := buffered.ReadBytes('\n')
		all = append(all, line...)
		if err != nil {
			return all, nil
		}
	}
	return all, nil
}

// remember keeps what later requests use.
func (s *side) remember(r request, body []byte) {
	var reply struct {
		ID    string
		Token string
		Key   string
		// Leader is the key of an election that was won.
		Leader struct{ Key string }
	}
	if json.Unmarshal(body, &reply) != nil {
		return
	}
	switch r.path {
	case "/v3/lease/grant":
		if reply.ID != "" {
			s.values["lease"] = reply.ID
		}
	case "/v3/lock/lock", "/v3/election/campaign":
		s.values["key"] = reply.Key + reply.Leader.Key
	case "/v3/auth/authenticate":
		var asked struct{ Name string }
		if json.Unmarshal([]byte(r.body), &asked) == nil {
			s.tokens[asked.Name] = reply.Token
		}
	}
}

// masked is a body as it is compared. Its fields are put in order, numbers stay as they were
// written, and of the following only counts whether they are there:
//
//   - ids of clusters, members and leases, and Raft's term and index;
//   - which members there are; versions, sizes, hashes, names and addresses of members, tokens, revisions of authentication;
//   - what is left of a lease's time; keys of locks and elections, which hold a lease;
//   - what is wrong with JSON that cannot be read: those words are of Go's library, not of etcd.
//
// A body that is no JSON counts as it is.
func (s *side) masked(path string, body []byte) string {
	var lines []string
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.UseNumber()
	for {
		var value any
		if err := decoder.Decode(&value); err == io.EOF {
			return strings.Join(lines, "\n")
		} else if err != nil {
			return string(body)
		}
		text, err := json.Marshal(s.mask(path, "", value))
		if err != nil {
			return err.Error()
		}
		lines = append(lines, string(text))
	}
}

// idCharsMin is the least length of an id that a server chose.
const idCharsMin = 15

// office is how the keys of the list's election begin, in base64.
const office = "b2ZmaWNl"

// unreadable is how messages about what is no JSON begin.
var unreadable = []string{"proto:", "invalid character", "unexpected EOF"}

var uncompared = map[string]bool{
	"cluster_id": true, "member_id": true, "raft_term": true, "raftTerm": true, "raftIndex": true,
	"raftAppliedIndex": true, "leader": true, "version": true, "dbSize": true, "dbSizeInUse": true,
	"storageVersion": true, "dbSizeQuota": true, "hash": true, "name": true, "peerURLs": true,
	"clientURLs": true, "token": true, "authRevision": true, "etcdserver": true, "etcdcluster": true,
	"storage": true, "members": true,
}

func (s *side) mask(path, name string, value any) any {
	switch value := value.(type) {
	case map[string]any:
		for inner, child := range value {
			value[inner] = s.mask(path, inner, child)
		}
		return value
	case []any:
		if uncompared[name] {
			return "#" + name
		}
		for i, child := range value {
			value[i] = s.mask(path, name, child)
		}
		if name == "leases" {
			return len(value)
		}
		return value
	case json.Number:
		if uncompared[name] {
			return "#" + name
		}
	case string:
		// The leader of an election is an object, and its name that of the election.
		known := uncompared[name] && name != "name" && (name != "version" || strings.HasSuffix(path, "/status"))
		chosen := len(value) >= idCharsMin && (name == "ID" || name == "lease")
		left := name == "TTL" && strings.HasSuffix(path, "/timetolive")
		won := name == "key" && (value != "" && value == s.values["key"] || strings.HasPrefix(value, office))
		unread := name == "message" && slices.ContainsFunc(unreadable, func(begin string) bool {
			return strings.HasPrefix(value, begin)
		})
		if known || chosen || left || won || unread {
			return "#" + name
		}
	}
	return value
}
