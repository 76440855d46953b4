//go:build tools

// The programs of others that this module pins and builds: etcd's server and its command line.
package tools

import (
	_ "go.etcd.io/etcd/etcdctl/v3"
	_ "go.etcd.io/etcd/server/v3"
)
