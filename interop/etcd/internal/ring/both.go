package ring

import (
	"errors"
	"flag"
	"fmt"
	"strings"
)

// Both are the two servers a program compares, as its flags say.
type Both struct {
	// Etcd is right by definition; Satrap is under test.
	Etcd, Satrap Target
	binary       string
	members      int
	against      bool
	client       string
	folder       string
	started      []*Etcd
}

// Register adds the flags that say where both servers are, or that etcd is to be started.
func (b *Both) Register(flags *flag.FlagSet) {
	b.Etcd.Register(flags, "etcd")
	b.Satrap.Register(flags, "satrap")
	flags.StringVar(&b.binary, "etcd-binary", "", "start this `program` instead of using --etcd")
	flags.IntVar(&b.members, "etcd-members", 1, "how many members of etcd to start")
	flags.BoolVar(&b.against, "against-etcd", false, "compare with a second etcd instead of --satrap")
	flags.StringVar(&b.folder, "satrap-folder", "", "the `folder` of interop/start-ring, so that members can be killed")
	flags.StringVar(&b.client, "client", "", "let only a client of this `name` in, by its certificate; as --satrap-cert says if given")
}

// Members are both clusters as something whose members can be killed, if they are.
func (b *Both) Members() (etcd, satrap Members, can bool) {
	if b.folder == "" || len(b.started) != 1 || b.members == 1 {
		return nil, nil, false
	}
	return b.started[0], Folder(b.folder), true
}

// Start starts what is to be started. Stop must be called, also after an error.
func (b *Both) Start() error {
	if b.client == "" {
		var err error
		if b.client, err = b.Satrap.CommonName(); err != nil {
			return err
		}
	}
	if b.binary != "" {
		server, err := StartEtcd(b.binary, b.members, b.client)
		if err != nil {
			return err
		}
		b.started = append(b.started, server)
		b.Etcd = server.Target
	}
	if b.against {
		if b.binary == "" {
			return errors.New("--against-etcd needs --etcd-binary")
		}
		server, err := StartEtcd(b.binary, b.members, b.client)
		if err != nil {
			return err
		}
		b.started = append(b.started, server)
		b.Satrap = server.Target
		b.Satrap.Name = "satrap"
	}
	if len(b.Etcd.Endpoints) == 0 || len(b.Satrap.Endpoints) == 0 {
		return errors.New("say where etcd and satrap are, see --help")
	}
	return nil
}

// Stop ends what Start started, and prints why a server crashed if one did.
func (b *Both) Stop() {
	for _, server := range b.started {
		if log := server.Log(); strings.Contains(log, "panic") {
			fmt.Println("etcd itself crashed:", log)
		}
		server.Stop()
	}
}
