package ring

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// startMax is how long a fresh etcd may take until it answers.
const startMax = 30 * time.Second

// logShownMax is how many bytes of a server's log a report shows.
const logShownMax = 6000

// Etcd is a real etcd that this process started.
type Etcd struct {
	// Target says how to reach it.
	Target Target
	// commands start the members, and processes are what came of it.
	commands  [][]string
	processes []*exec.Cmd
	folder    string
	// ports are held until Stop, so that a member finds its own free whenever it starts.
	ports reserved
}

// StartEtcd starts a fresh etcd of so many members and waits until it answers. With a name, it lets
// in only that client, by its certificate. It never syncs its disk: what it stores is compared,
// never recovered.
func StartEtcd(binary string, members int, client string) (*Etcd, error) {
	folder, err := os.MkdirTemp(memoryFolder(), "etcd-")
	if err != nil {
		return nil, err
	}
	etcd := &Etcd{folder: folder}
	addresses, err := etcd.ports.any(2 * members)
	if err != nil {
		etcd.Stop()
		return nil, err
	}
	clients, peers := addresses[:members], addresses[members:]
	etcd.Target = Target{Name: "etcd", Endpoints: clients}
	var cluster, flags []string
	if client != "" {
		if flags, err = etcd.Target.secure(folder, client); err != nil {
			etcd.Stop()
			return nil, err
		}
	}
	for i, peer := range peers {
		cluster = append(cluster, fmt.Sprintf("member-%d=http://%s", i, peer))
	}
	flags = append(flags, "--initial-cluster="+strings.Join(cluster, ","))
	for i := range members {
		if err := etcd.member(binary, i, clients[i], peers[i], flags); err != nil {
			etcd.Stop()
			return nil, err
		}
	}
	if err := etcd.ready(); err != nil {
		text := etcd.Log()
		etcd.Stop()
		return nil, fmt.Errorf("%s does not answer: %w\n%s", binary, err, text)
	}
	return etcd, nil
}

func (e *Etcd) member(binary string, number int, client, peer string, flags []string) error {
	name := fmt.Sprintf("member-%d", number)
	url := e.Target.scheme() + client
	e.commands = append(e.commands, append([]string{
		binary, "--name=" + name, "--data-dir=" + filepath.Join(e.folder, name), "--unsafe-no-fsync",
		"--listen-client-urls=" + url, "--advertise-client-urls=" + url,
		"--listen-peer-urls=http://" + peer, "--initial-advertise-peer-urls=http://" + peer,
		"--bcrypt-cost=4", "--log-level=error",
	}, flags...))
	e.processes = append(e.processes, nil)
	return e.start(number)
}

// start starts a member, for the first time or again.
func (e *Etcd) start(number int) error {
	log, err := os.OpenFile(e.log(number), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	process := exec.Command(e.commands[number][0], e.commands[number][1:]...)
	process.Stdout, process.Stderr = log, log
	// The server must not outlive us, however we end.
	process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := process.Start(); err != nil {
		return err
	}
	e.processes[number] = process
	return nil
}

func (e *Etcd) log(number int) string {
	return filepath.Join(e.folder, fmt.Sprintf("member-%d.log", number))
}

func (e *Etcd) ready() error {
	ctx, cancel := context.WithTimeout(context.Background(), startMax)
	defer cancel()
	client, err := e.Target.Client()
	if err != nil {
		return err
	}
	defer client.Close()
	for {
		_, err = client.Get(ctx, "x")
		if err == nil || ctx.Err() != nil {
			return err
		}
	}
}

// Log is the begin of what each member logged.
func (e *Etcd) Log() string {
	var all string
	for i := range e.processes {
		text, err := os.ReadFile(e.log(i))
		if err != nil {
			return err.Error()
		}
		all += string(text[:min(len(text), logShownMax)])
	}
	return all
}

// Stop ends the server and removes what it stored.
func (e *Etcd) Stop() {
	for _, process := range e.processes {
		if process != nil {
			_ = process.Process.Kill()
			_ = process.Wait()
		}
	}
	e.ports.giveBack()
	_ = os.RemoveAll(e.folder)
}

// memoryFolder is where files cost no disk writes, or the usual place for temporary ones.
func memoryFolder() string {
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		return "/dev/shm"
	}
	return ""
}
