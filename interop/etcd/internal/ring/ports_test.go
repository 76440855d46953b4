package ring

import (
	"net"
	"testing"
)

func TestReservedPortIsBoundByNumberOnly(t *testing.T) {
	var ports reserved
	defer ports.giveBack()
	addresses, err := ports.any(50)
	if err != nil {
		t.Fatal(err)
	}
	ours := make(map[string]bool)
	for _, address := range addresses {
		ours[address] = true
	}
	if len(ours) != len(addresses) {
		t.Fatalf("%d addresses of %d differ", len(ours), len(addresses))
	}
	for range 100 {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		if ours[listener.Addr().String()] {
			t.Fatalf("another listener got %s", listener.Addr())
		}
	}
	// The process that it is for, now and when it starts again.
	for range 2 {
		if connection, err := net.Dial("tcp", addresses[0]); err == nil {
			connection.Close()
			t.Fatal("a port takes connections before a process listens")
		}
		listener, err := net.Listen("tcp", addresses[0])
		if err != nil {
			t.Fatal(err)
		}
		listener.Close()
	}
}
