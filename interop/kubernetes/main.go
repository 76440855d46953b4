// Command kubernetes runs a real API server of Kubernetes, the one of custom resources, in this
// process, on etcd or on the ring under test. It makes, changes and deletes many objects while
// several informers follow, and checks that each of them ends up with what is really there.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	servertesting "k8s.io/apiextensions-apiserver/pkg/cmd/server/testing"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
)

// runMax is how long one run may take.
const runMax = 4 * time.Minute

// kubeconfig leads nowhere: the server wants to be told of a cluster it would belong to.
const kubeconfig = `
apiVersion: v1
kind: Config
clusters: [{name: none, cluster: {server: "http://127.0.0.1:1"}}]
contexts: [{name: none, context: {cluster: none, user: none}}]
users: [{name: none, user: {}}]
current-context: none
`

// storage says where the API server keeps its objects.
type storage struct {
	servers, ca, cert, key string
	objects                int
}

func main() {
	var s storage
	flag.StringVar(&s.servers, "servers", "", "endpoints of the store, `URL,...`")
	flag.StringVar(&s.ca, "ca", "", "PEM `file` of the store's authority")
	flag.StringVar(&s.cert, "cert", "", "PEM `file` of our certificate")
	flag.StringVar(&s.key, "key", "", "PEM `file` of our key")
	flag.IntVar(&s.objects, "objects", 1000, "how many objects")
	klog.InitFlags(nil)
	_ = flag.Set("logtostderr", "false")
	_ = flag.Set("stderrthreshold", "FATAL")
	flag.Parse()
	for _, cache := range []bool{true, false} {
		begun := time.Now()
		counts, err := s.run(cache)
		if err != nil {
			fmt.Fprintf(os.Stderr, "kubernetes on %s, watch cache %v: %v\n", s.servers, cache, err)
			os.Exit(1)
		}
		fmt.Printf("Kubernetes API server on %s, watch cache %v: %s, %.0f s\n",
			s.servers, cache, counts, time.Since(begun).Seconds())
	}
}

// quiet takes what the server's starter says.
type quiet struct{}

// Logf drops messages: the harness prints its own.
func (quiet) Logf(string, ...any) {}

// Errorf is an error that the server goes on after.
func (quiet) Errorf(format string, arguments ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", arguments...)
}

// Fatalf is one that it does not.
func (quiet) Fatalf(format string, arguments ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", arguments...)
	os.Exit(1)
}

// run starts a server and does everything to it once.
func (s *storage) run(cache bool) (*counts, error) {
	ctx, cancel := context.WithTimeout(context.Background(), runMax)
	defer cancel()
	server, err := s.start(cache)
	if err != nil {
		return nil, err
	}
	defer server.TearDownFn()
	config := rest.CopyConfig(server.ClientConfig)
	// The client would else hold itself back.
	config.QPS, config.Burst = -1, -1
	definitions, err := clientset.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	objects, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	w := &world{Context: ctx, definitions: definitions, objects: objects, wanted: s.objects}
	return w.everything()
}

func (s *storage) start(cache bool) (servertesting.TestServer, error) {
	file, err := os.CreateTemp("", "kubeconfig")
	if err != nil {
		return servertesting.TestServer{}, err
	}
	defer os.Remove(file.Name())
	if _, err := file.WriteString(kubeconfig); err != nil {
		return servertesting.TestServer{}, err
	}
	if err := file.Close(); err != nil {
		return servertesting.TestServer{}, err
	}
	flags := []string{
		"--etcd-servers=" + s.servers,
		fmt.Sprintf("--etcd-prefix=/interop/%d", time.Now().UnixNano()),
		"--etcd-compaction-interval=5s",
		fmt.Sprintf("--watch-cache=%v", cache),
		"--authentication-skip-lookup", "--authentication-kubeconfig=" + file.Name(),
		"--authorization-kubeconfig=" + file.Name(), "--kubeconfig=" + file.Name(),
		// These would ask a cluster.
		"--enable-priority-and-fairness=false",
		"--disable-admission-plugins=" + strings.Join([]string{
			"NamespaceLifecycle", "MutatingAdmissionWebhook", "ValidatingAdmissionWebhook",
			"ValidatingAdmissionPolicy", "MutatingAdmissionPolicy",
		}, ","),
	}
	for name, value := range map[string]string{"cafile": s.ca, "certfile": s.cert, "keyfile": s.key} {
		if value != "" {
			flags = append(flags, "--etcd-"+name+"="+value)
		}
	}
	return servertesting.StartTestServer(quiet{}, nil, flags, nil)
}
