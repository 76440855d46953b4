package ring

import (
	"fmt"
	"os"
	"syscall"
)

// reserved are loopback ports that no other process gets. A socket is bound to each and does not
// listen, so the process that a port is for binds it too, as often as it starts: both sockets have
// SO_REUSEADDR. Until it listens, connections are refused.
type reserved struct {
	sockets []int
}

// any reserves so many free ports and returns their addresses.
func (r *reserved) any(count int) ([]string, error) {
	var addresses []string
	for range count {
		socket, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, os.NewSyscallError("socket", err)
		}
		r.sockets = append(r.sockets, socket)
		if err := syscall.SetsockoptInt(socket, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1); err != nil {
			return nil, os.NewSyscallError("setsockopt", err)
		}
		if err := syscall.Bind(socket, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			return nil, os.NewSyscallError("bind", err)
		}
		address, err := syscall.Getsockname(socket)
		if err != nil {
			return nil, os.NewSyscallError("getsockname", err)
		}
		addresses = append(addresses, fmt.Sprintf("127.0.0.1:%d", address.(*syscall.SockaddrInet4).Port))
	}
	return addresses, nil
}

// giveBack lets other processes have the ports.
func (r *reserved) giveBack() {
	for _, socket := range r.sockets {
		_ = syscall.Close(socket)
	}
	r.sockets = nil
}
