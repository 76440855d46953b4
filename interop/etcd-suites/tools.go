//go:build tools

// Package tools names what etcd's suites import, so that go.sum has it.
package tools

import (
	_ "go.etcd.io/etcd/tests/v3/framework"
)
