// Command beside starts a real etcd, runs a program with `--etcd HOST:PORT` as its last argument, and
// stops the etcd again. It is for programs that cannot start one themselves.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"

	"satrap.invalid/interop/etcd/internal/ring"
)

func main() {
	binary := flag.String("etcd-binary", "", "the `program` to start")
	flag.Parse()
	code, err := run(*binary, flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "beside:", err)
	}
	os.Exit(code)
}

func run(binary string, words []string) (int, error) {
	if len(words) == 0 {
		return 2, errors.New("no program given")
	}
	server, err := ring.StartEtcd(binary, 1, "")
	if err != nil {
		return 2, err
	}
	defer server.Stop()
	program := exec.Command(words[0], append(words[1:], "--etcd", server.Target.Endpoints[0])...)
	program.Stdout, program.Stderr = os.Stdout, os.Stderr
	var ended *exec.ExitError
	if err := program.Run(); errors.As(err, &ended) {
		return ended.ExitCode(), nil
	} else if err != nil {
		return 2, err
	}
	return 0, nil
}
