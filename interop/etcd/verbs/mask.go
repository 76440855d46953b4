package main

import (
	"encoding/base64"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// mask replaces in what etcdctl printed what two correct clusters need not agree on:
//
//   - ids of clusters, members and leases, in decimal and in hexadecimal;
//   - addresses of members, and their names;
//   - how long something took, and what is left of a lease's time;
//   - Raft's term and index, which member leads, versions of server and storage, sizes of the
//     database, hashes, and how many errors an endpoint counts;
//   - revisions of authentication, which count since the cluster was made;
//   - the order of lines about members and of leases;
//   - where etcdctl itself crashed (it does, on an alarm to print as fields);
//   - lines that etcdctl logs, and what a password prompt or a lock's key adds of an id.
type mask struct {
	// names are what is replaced wherever it stands, and by what.
	names map[string]string
	// members are the names of the members, which may be as short as one letter: they are replaced
	// only where one is expected.
	members []string
}

// rules replace what patterns match. Their order matters: addresses go before numbers.
var rules = []struct {
	pattern     *regexp.Regexp
	replacement string
}{
	{regexp.MustCompile(`(?m)^\{"level".*\n`), ""},
	{regexp.MustCompile(`(?s)^(panic: [^\n]*).*`), "etcdctl itself: $1"},
	{regexp.MustCompile(`((?:office|busy|name)/)[0-9a-f]+`), "$1<lease>"},
	{regexp.MustCompile(`"(lease|Lease)"( ?: ?)\d{6,}`), `"$1"$2<lease>`},
	{regexp.MustCompile(`(?:https?://)?127\.0\.0\.1:\d+`), "<address>"},
	{regexp.MustCompile(`\b[0-9.]+(?:µs|ms|ns|s)\b`), "<time>"},
	{regexp.MustCompile(`remaining\(<time>\)`), "remaining(<time>)"},
	{regexp.MustCompile(`"(ttl|TTL)"( ?: ?)\d+`), `"$1"${2}<ttl>`},
	{regexp.MustCompile(`"(cluster_id|member_id|raft_term|raftTerm|raftIndex|raftAppliedIndex|` +
		`leader|dbSize|dbSizeInUse|dbSizeQuota|hash|authRevision)":\d+`), `"$1":<number>`},
	{regexp.MustCompile(`"(ClusterID|MemberID|RaftTerm|RaftIndex|RaftAppliedIndex|Leader|DBSize|` +
		`DBSizeInUse|DBSizeQuota|Hash|AuthRevision)" : \d+`), `"$1" : <number>`},
	{regexp.MustCompile(`"(version|storageVersion|name)":"[^"]*"`), `"$1":<text>`},
	{regexp.MustCompile(`"(Version|StorageVersion|Name)" : "[^"]*"`), `"$1" : <text>`},
	{regexp.MustCompile(`AuthRevision: \d+`), "AuthRevision: <number>"},
	{regexp.MustCompile(`, (?:hash|HashKV).*`), ", <hash>"},
	// One endpoint's status in plain text: all columns but the last three are about the machine.
	{regexp.MustCompile(`(?m)^<address>, [^,]*, .*?, (true|false), (true|false), \d+, \d+, \d+, (.*)$`),
		"<address>, <status>, learner $2, errors $3"},
	{regexp.MustCompile(`(?m)^<address>, \d+(, \d+)?$`), "<address>, <hash>$1"},
	{regexp.MustCompile(`Server version [0-9.]+`), "Server version <text>"},
	{regexp.MustCompile(`cluster version \d+\.\d+`), "cluster version <text>"},
	// etcdctl pads an id that begins with a zero.
	{regexp.MustCompile(`(?m)\b([Mm]ember|cluster) +<`), "$1 <"},
}

// apply masks one output. `about` is the verb, which says whether the order of lines counts.
func (m *mask) apply(about, text string) string {
	var names []string
	for name := range m.names {
		names = append(names, name)
	}
	// The longest first: an id may be part of another.
	slices.SortFunc(names, func(a, b string) int { return len(b) - len(a) })
	for _, name := range names {
		text = strings.ReplaceAll(text, name, m.names[name])
	}
	if about == "member" {
		name := regexp.MustCompile(`([ ,"])(` + strings.Join(m.members, "|") + `)([,"]|=<|=http)`)
		text = name.ReplaceAllString(text, "$1<name>$3")
	}
	text = encodedBytes.ReplaceAllStringFunc(text, decoded)
	for _, rule := range rules {
		text = rule.pattern.ReplaceAllString(text, rule.replacement)
	}
	if unordered[about] {
		text = clusterNames.ReplaceAllStringFunc(text, sortedList)
		text = sortedObjects(text)
		lines := strings.Split(text, "\n")
		slices.Sort(lines)
		text = strings.Join(lines, "\n")
	}
	return text
}

// unordered are the verbs whose lines are about members or leases, in the order of their ids.
var unordered = map[string]bool{"member": true, "endpoint": true, "defrag": true, "lease": true}

// clusterNames is the list of members that etcdctl prints for a new one to be started with.
var clusterNames = regexp.MustCompile(`ETCD_INITIAL_CLUSTER="[^"]*"`)

func sortedList(text string) string {
	members := strings.Split(strings.Trim(strings.TrimPrefix(text, "ETCD_INITIAL_CLUSTER="), `"`), ",")
	slices.Sort(members)
	return "ETCD_INITIAL_CLUSTER=" + strings.Join(members, ",")
}

// sortedObjects puts each line of JSON in an order of its own: it is compared, not read.
func sortedObjects(text string) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, "{") || strings.HasPrefix(line, "[") {
			parts := strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune("{}[]", r) })
			for at := range parts {
				parts[at] = strings.Trim(parts[at], ",")
			}
			slices.Sort(parts)
			lines[i] = strings.Join(parts, " ")
		}
	}
	return strings.Join(lines, "\n")
}

// encodedBytes are keys in JSON, which may hold an id.
var encodedBytes = regexp.MustCompile(`"(?:key|Key)":"[A-Za-z0-9+/=]*"`)

func decoded(text string) string {
	name, value, _ := strings.Cut(text, ":")
	bytes, err := base64.StdEncoding.DecodeString(strings.Trim(value, `"`))
	if err != nil {
		return text
	}
	return name + ":" + strconv.Quote(string(bytes))
}

// number masks an id, as etcdctl writes it in its several ways. What is so short that it could be
// another number stays.
func (m *mask) number(id uint64, name string) {
	for _, text := range []string{
		strconv.FormatUint(id, 10), strconv.FormatInt(int64(id), 10),
		strconv.FormatUint(id, 16), fmt.Sprintf("%016x", id), strconv.FormatInt(int64(id), 16),
	} {
		if len(text) >= idCharsMin {
			m.names[text] = name
		}
	}
}

// idCharsMin is the least length of an id: servers choose them at random from 64 bits.
const idCharsMin = 8
