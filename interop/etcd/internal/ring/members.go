package ring

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Members are a cluster whose members can be killed and started again, each by its endpoint.
type Members interface {
	// Kill ends the member at once, as if it lost its power, and returns when it is gone.
	Kill(endpoint string) error
	// Start starts it again. It may take a while until it answers.
	Start(endpoint string) error
}

// Folder is a ring that interop/start-ring started. Of each member NAME the folder holds NAME.start,
// which becomes the member, NAME.pid, and NAME.address.
type Folder string

// Kill implements Members.
func (f Folder) Kill(endpoint string) error {
	name, err := f.named(endpoint)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(f.file(name, "pid"))
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return err
	}
	// It is no child of ours, so only a descriptor tells when it is gone.
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	defer unix.Close(process)
	if err := unix.PidfdSendSignal(process, unix.SIGKILL, nil, 0); err != nil {
		return err
	}
	for {
		// Go's runtime interrupts system calls with signals of its own.
		_, err = unix.Poll([]unix.PollFd{{Fd: int32(process), Events: unix.POLLIN}}, -1)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// Start implements Members. The member goes on after this process has ended.
func (f Folder) Start(endpoint string) error {
	name, err := f.named(endpoint)
	if err != nil {
		return err
	}
	member := exec.Command(f.file(name, "start"))
	member.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := member.Start(); err != nil {
		return err
	}
	return os.WriteFile(f.file(name, "pid"), []byte(strconv.Itoa(member.Process.Pid)+"\n"), 0o644)
}

// named finds the member that listens there.
func (f Folder) named(endpoint string) (string, error) {
	files, err := filepath.Glob(f.file("*", "address"))
	if err != nil {
		return "", err
	}
	for _, file := range files {
		address, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		if strings.TrimSpace(string(address)) == endpoint {
			return strings.TrimSuffix(filepath.Base(file), ".address"), nil
		}
	}
	return "", fmt.Errorf("no member in %s listens at %s", string(f), endpoint)
}

func (f Folder) file(name, end string) string { return filepath.Join(string(f), name+"."+end) }

// Kill implements Members.
func (e *Etcd) Kill(endpoint string) error {
	number, err := e.number(endpoint)
	if err != nil {
		return err
	}
	if err := e.processes[number].Process.Kill(); err != nil {
		return err
	}
	// That it was killed is no failure.
	_ = e.processes[number].Wait()
	return nil
}

// Start implements Members.
func (e *Etcd) Start(endpoint string) error {
	number, err := e.number(endpoint)
	if err != nil {
		return err
	}
	return e.start(number)
}

func (e *Etcd) number(endpoint string) (int, error) {
	for number, known := range e.Target.Endpoints {
		if known == endpoint {
			return number, nil
		}
	}
	return 0, fmt.Errorf("no etcd at %s", endpoint)
}
