// Command metrics reads what the members of the ring count, as Prometheus would: without a client
// certificate. It checks the text with the rules of `promtool check metrics`, that every figure is
// there that etcd's alert rules and dashboards (contrib/mixin) ask for, with the labels they select by
// and the type it has in etcd, and that the figures move when clients and members do something.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	clientv3 "go.etcd.io/etcd/client/v3"

	"satrap.invalid/interop/etcd/internal/ring"
)

// runMax is how long all of it may take.
const runMax = 60 * time.Second

// mixin is every metric in the expressions of etcd's mixin, and the labels they select or group by.
var mixin = map[string][]string{
	"etcd_disk_backend_commit_duration_seconds":     nil,
	"etcd_disk_wal_fsync_duration_seconds":          nil,
	"etcd_mvcc_db_total_size_in_bytes":              nil,
	"etcd_mvcc_db_total_size_in_use_in_bytes":       nil,
	"etcd_network_client_grpc_received_bytes_total": nil,
	"etcd_network_client_grpc_sent_bytes_total":     nil,
	"etcd_network_peer_received_bytes_total":        {"From"},
	"etcd_network_peer_round_trip_time_seconds":     {"To"},
	"etcd_network_peer_sent_bytes_total":            {"To"},
	"etcd_network_peer_sent_failures_total":         {"To"},
	"etcd_server_has_leader":                        nil,
	"etcd_server_leader_changes_seen_total":         nil,
	"etcd_server_proposals_applied_total":           nil,
	"etcd_server_proposals_committed_total":         nil,
	"etcd_server_proposals_failed_total":            nil,
	"etcd_server_proposals_pending":                 nil,
	"etcd_server_quota_backend_bytes":               nil,
	"grpc_server_handled_total":                     {"grpc_type", "grpc_service", "grpc_method", "grpc_code"},
	"grpc_server_handling_seconds":                  {"grpc_type", "grpc_service", "grpc_method"},
	"grpc_server_started_total":                     {"grpc_type", "grpc_service", "grpc_method"},
	"process_resident_memory_bytes":                 nil,
}

// difference is how a figure differs from etcd's: the type that it has here, and why.
type difference struct {
	kind dto.MetricType
	why  string
}

// otherwise is what etcd does not show like that.
var otherwise = map[string]difference{
	"etcd_network_peer_round_trip_time_seconds": {dto.MetricType_HISTOGRAM, "etcd shows it after half a minute"},
	"grpc_server_handling_seconds":              {dto.MetricType_HISTOGRAM, "etcd shows it with --metrics=extensive only"},
	"etcd_network_peer_sent_failures_total":     {dto.MetricType_COUNTER, "etcd shows it after the first failure"},
	"etcd_server_proposals_applied_total":       {dto.MetricType_COUNTER, "a gauge in etcd, against promtool's rules for names"},
	"etcd_server_proposals_committed_total":     {dto.MetricType_COUNTER, "a gauge in etcd, against promtool's rules for names"},
}

func main() {
	var both ring.Both
	both.Register(flag.CommandLine)
	monitored := flag.String("satrap-metrics", "", "`host:port,...` of the members' listeners for monitoring")
	flag.Parse()
	faults, err := run(&both, strings.Split(*monitored, ","))
	if err != nil {
		fmt.Fprintln(os.Stderr, "metrics:", err)
		os.Exit(2)
	}
	for _, fault := range faults {
		fmt.Println("FAULT:", fault)
	}
	fmt.Printf("metrics: %d figures of etcd's mixin, %d faults\n", len(mixin), len(faults))
	if len(faults) > 0 {
		os.Exit(1)
	}
}

func run(both *ring.Both, monitored []string) ([]string, error) {
	defer both.Stop()
	if err := both.Start(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), runMax)
	defer cancel()
	for _, target := range []ring.Target{both.Etcd, both.Satrap} {
		client, err := target.Client()
		if err != nil {
			return nil, err
		}
		defer client.Close()
		if err := drive(ctx, client); err != nil {
			return nil, fmt.Errorf("%s: %w", target.Name, err)
		}
	}
	etcd, _, err := scrape(&both.Etcd, both.Etcd.Endpoints)
	if err != nil {
		return nil, err
	}
	satrap, faults, err := scrape(&ring.Target{Name: "satrap"}, monitored)
	if err != nil {
		return nil, err
	}
	for name, labels := range mixin {
		faults = append(faults, judge(name, labels, etcd[name], satrap[name])...)
	}
	faults = append(faults, moved(satrap)...)
	slices.Sort(faults)
	return faults, nil
}

// drive makes every figure move that clients can move: it leaves a watch open and a refusal behind.
func drive(ctx context.Context, client *clientv3.Client) error {
	watch := client.Watch(ctx, "metrics", clientv3.WithCreatedNotify())
	if created := <-watch; created.Err() != nil {
		return created.Err()
	}
	if _, err := client.Put(ctx, "metrics", strings.Repeat("x", 10_000)); err != nil {
		return err
	}
	if _, err := client.Get(ctx, "metrics"); err != nil {
		return err
	}
	if _, err := client.Put(ctx, "", "no key"); err == nil {
		return errors.New("a put without a key was taken")
	}
	return nil
}

// scrape reads what members count, and what promtool would say of it.
func scrape(target *ring.Target, members []string) (map[string]*family, []string, error) {
	config, err := target.TLS()
	if err != nil {
		return nil, nil, err
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: config}}
	scheme := "http://"
	if config != nil {
		scheme = "https://"
	}
	all, faults := map[string]*family{}, []string{}
	for _, member := range members {
		response, err := client.Get(scheme + member + "/metrics")
		if err != nil {
			return nil, nil, err
		}
		text, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil || response.StatusCode != http.StatusOK {
			return nil, nil, fmt.Errorf("%s: %s, %v", member, response.Status, err)
		}
		problems, err := promlint.New(bytes.NewReader(text)).Lint()
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", member, err)
		}
		for _, problem := range problems {
			faults = append(faults, fmt.Sprintf("%s: %s: %s", member, problem.Metric, problem.Text))
		}
		parser := expfmt.NewTextParser(model.UTF8Validation)
		parsed, err := parser.TextToMetricFamilies(bytes.NewReader(text))
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", member, err)
		}
		for name, found := range parsed {
			if all[name] == nil {
				all[name] = &family{kind: found.GetType()}
			}
			all[name].figures = append(all[name].figures, found.Metric...)
		}
	}
	return all, faults, nil
}

// family is one metric of all members.
type family struct {
	kind    dto.MetricType
	figures []*dto.Metric
}

// judge says what is wrong with a metric that the mixin asks for.
func judge(name string, labels []string, etcd, satrap *family) []string {
	if satrap == nil || len(satrap.figures) == 0 {
		return []string{name + " is missing"}
	}
	var faults []string
	for _, label := range labels {
		for _, figure := range satrap.figures {
			if value(figure, label) == "" {
				faults = append(faults, fmt.Sprintf("%s: a figure lacks the label %s", name, label))
				break
			}
		}
	}
	if one, differs := otherwise[name]; differs {
		if satrap.kind != one.kind {
			faults = append(faults, fmt.Sprintf("%s is a %s, expected a %s", name, satrap.kind, one.kind))
		}
		return faults
	}
	if etcd == nil {
		return append(faults, name+" is missing in etcd itself; the list here is wrong")
	}
	if etcd.kind != satrap.kind {
		faults = append(faults, fmt.Sprintf("%s is a %s, in etcd a %s", name, satrap.kind, etcd.kind))
	}
	return faults
}

// moved says which figures do not show what was done.
func moved(satrap map[string]*family) []string {
	var faults []string
	least := func(what string, found, expected float64) {
		if found < expected {
			faults = append(faults, fmt.Sprintf("%s: %v, expected at least %v", what, found, expected))
		}
	}
	put := map[string]string{"grpc_service": "etcdserverpb.KV", "grpc_method": "Put", "grpc_type": "unary"}
	least("puts that began", satrap["grpc_server_started_total"].sum(put), 2)
	least("bytes from clients", satrap["etcd_network_client_grpc_received_bytes_total"].sum(nil), 10_000)
	least("bytes to clients", satrap["etcd_network_client_grpc_sent_bytes_total"].sum(nil), 10_000)
	least("bytes to members", satrap["etcd_network_peer_sent_bytes_total"].sum(nil), 10_000)
	least("bytes from members", satrap["etcd_network_peer_received_bytes_total"].sum(nil), 10_000)
	least("heartbeats", satrap["etcd_network_peer_round_trip_time_seconds"].sum(nil), 1)
	least("puts that took time", satrap["grpc_server_handling_seconds"].sum(put), 2)
	put["grpc_code"] = "OK"
	least("puts that were done", satrap["grpc_server_handled_total"].sum(put), 1)
	put["grpc_code"] = "InvalidArgument"
	least("puts that were refused", satrap["grpc_server_handled_total"].sum(put), 1)
	// What the dashboard shows as streams.
	watches := map[string]string{"grpc_service": "etcdserverpb.Watch", "grpc_type": "bidi_stream"}
	open := satrap["grpc_server_started_total"].sum(watches) - satrap["grpc_server_handled_total"].sum(watches)
	least("watch streams", open, 1)
	return faults
}

// sum is that of all figures with these labels.
func (f *family) sum(labels map[string]string) float64 {
	var sum float64
	if f == nil {
		return 0
	}
	for _, figure := range f.figures {
		fits := true
		for label, wanted := range labels {
			fits = fits && value(figure, label) == wanted
		}
		switch {
		case !fits:
		case figure.Counter != nil:
			sum += figure.Counter.GetValue()
		case figure.Histogram != nil:
			sum += float64(figure.Histogram.GetSampleCount())
		default:
			sum += figure.Gauge.GetValue()
		}
	}
	return sum
}

func value(figure *dto.Metric, label string) string {
	for _, pair := range figure.Label {
		if pair.GetName() == label {
			return pair.GetValue()
		}
	}
	return ""
}
