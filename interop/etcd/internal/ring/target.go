// Package ring reaches the two servers that a program of this module compares: real etcd, and the
// ring under test. Both are only a list of endpoints and, optionally, TLS files.
package ring

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// receiveBytesMax bounds one answer. The largest is a range over everything a session wrote.
const receiveBytesMax = 256 << 20

// leaderMax bounds how long a cluster may be without a leader when one is needed.
const leaderMax = 30 * time.Second

// Target is one server: where it listens, and how to be let in.
type Target struct {
	// Name is how reports call it.
	Name string
	// Endpoints are `host:port`, all of one cluster.
	Endpoints []string
	// CA, Cert and Key are PEM files. Without a CA the connection is in plain text.
	CA, Cert, Key string
	// ServerName is what the certificate must say, if not the host.
	ServerName string
}

// Register adds the flags of this target, named after it.
func (t *Target) Register(flags *flag.FlagSet, name string) {
	t.Name = name
	flags.Func(name, "endpoints of "+name+", `host:port,...`", func(list string) error {
		t.Endpoints = strings.Split(list, ",")
		for i, endpoint := range t.Endpoints {
			_, bare, found := strings.Cut(endpoint, "://")
			if found {
				t.Endpoints[i] = bare
			}
		}
		return nil
	})
	flags.StringVar(&t.CA, name+"-ca", "", "PEM `file` of the authority of "+name)
	flags.StringVar(&t.Cert, name+"-cert", "", "PEM `file` of our certificate for "+name)
	flags.StringVar(&t.Key, name+"-key", "", "PEM `file` of our key for "+name)
	flags.StringVar(&t.ServerName, name+"-server-name", "", "the `name` in the certificate of "+name)
}

// TLS is the client's configuration, or nil when the target is reached in plain text.
func (t *Target) TLS() (*tls.Config, error) {
	if t.CA == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(t.CA)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{RootCAs: x509.NewCertPool(), ServerName: t.ServerName, MinVersion: tls.VersionTLS12}
	if !config.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate", t.CA)
	}
	if t.Cert != "" {
		pair, err := tls.LoadX509KeyPair(t.Cert, t.Key)
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

// URL is the first endpoint with its scheme.
func (t *Target) URL() string { return t.scheme() + t.Endpoints[0] }

func (t *Target) scheme() string {
	if t.CA == "" {
		return "http://"
	}
	return "https://"
}

// Dial connects to every endpoint, one bare gRPC connection each: no retry, no balancing.
func (t *Target) Dial(options ...grpc.DialOption) ([]*grpc.ClientConn, error) {
	if len(t.Endpoints) == 0 {
		return nil, errors.New("no endpoints given for " + t.Name)
	}
	config, err := t.TLS()
	if err != nil {
		return nil, err
	}
	creds := insecure.NewCredentials()
	if config != nil {
		creds = credentials.NewTLS(config)
	}
	options = append(options, grpc.WithTransportCredentials(creds),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(receiveBytesMax), grpc.MaxCallSendMsgSize(receiveBytesMax)))
	var connections []*grpc.ClientConn
	for _, endpoint := range t.Endpoints {
		connection, err := grpc.NewClient("passthrough:///"+endpoint, options...)
		if err != nil {
			return nil, err
		}
		connections = append(connections, connection)
	}
	return connections, nil
}

// LeaderFirst puts the endpoint of the leader before the others: some requests only the leader takes.
func (t *Target) LeaderFirst() error {
	client, err := t.Client()
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), leaderMax)
	defer cancel()
	for {
		for i, endpoint := range t.Endpoints {
			state, err := client.Status(ctx, endpoint)
			switch {
			case ctx.Err() != nil:
				return fmt.Errorf("%s had no leader for %s: %w", t.Name, leaderMax, ctx.Err())
			case err == nil && state.Leader == state.Header.MemberId:
				t.Endpoints[0], t.Endpoints[i] = endpoint, t.Endpoints[0]
				return nil
			}
		}
	}
}

// Client is etcd's own Go client for this target.
func (t *Target) Client() (*clientv3.Client, error) {
	config, err := t.TLS()
	if err != nil {
		return nil, err
	}
	return clientv3.New(clientv3.Config{
		Endpoints: t.Endpoints, TLS: config, DialTimeout: 10 * time.Second, Logger: zap.NewNop(),
	})
}
