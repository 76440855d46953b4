//go:build tools

// The load generator of etcd's own documentation, in the newest release that has --target-leader and
// that Go's module proxy serves.
package tools

import _ "go.etcd.io/etcd/v3/tools/benchmark"
