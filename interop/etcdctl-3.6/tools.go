//go:build tools

// The release of etcd's command line before the one that the module beside this one pins.
package tools

import _ "go.etcd.io/etcd/etcdctl/v3"
