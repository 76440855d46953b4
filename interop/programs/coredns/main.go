// Command coredns serves names that are stored in etcd by CoreDNS and its plugin for etcd, asks it for
// them, and prints the answers. compare.py runs it on etcd and on the ring.
package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/etcd"
	"github.com/miekg/dns"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// records are what is stored, as SkyDNS has it: the key has the labels from the right.
var records = map[string]string{
	"/skydns/test/satrap/www":        `{"host":"192.0.2.1","ttl":60}`,
	"/skydns/test/satrap/six":        `{"host":"2001:db8::1"}`,
	"/skydns/test/satrap/alias":      `{"host":"www.satrap.test"}`,
	"/skydns/test/satrap/many/a":     `{"host":"192.0.2.2","port":8001,"priority":10,"weight":3}`,
	"/skydns/test/satrap/many/b":     `{"host":"192.0.2.3","port":8002,"priority":20,"weight":7}`,
	"/skydns/test/satrap/text":       `{"text":"a text"}`,
	"/skydns/test/satrap/mail":       `{"host":"192.0.2.9","mail":true,"priority":5}`,
	"/skydns/arpa/in-addr/192/0/2/1": `{"host":"www.satrap.test"}`,
	"/skydns/test/satrap/grouped/x":  `{"host":"192.0.2.20","group":"one"}`,
	"/skydns/test/satrap/grouped/y":  `{"host":"192.0.2.21","group":"one"}`,
}

func main() {
	if err := run(strings.Split(os.Args[1], ",")); err != nil {
		fmt.Println("FAILED:", err)
		os.Exit(1)
	}
}

func run(endpoints []string) error {
	ctx := context.Background()
	for i, endpoint := range endpoints {
		endpoints[i] = "http://" + endpoint
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: 10 * time.Second})
	if err != nil {
		return err
	}
	defer client.Close()
	for key, value := range records {
		if _, err := client.Put(ctx, key, value); err != nil {
			return err
		}
	}
	caddy.Quiet, dnsserver.Quiet = true, true
	dnsserver.Directives = []string{"bind", "etcd"}
	server, err := caddy.Start(caddy.CaddyfileInput{ServerTypeName: "dns", Contents: fmt.Appendf(nil, `.:0 {
		bind 127.0.0.1
		etcd satrap.test 2.0.192.in-addr.arpa {
			path /skydns
			endpoint %s
		}
	}`, strings.Join(endpoints, " "))})
	if err != nil {
		return err
	}
	defer server.Stop()
	address := server.Servers()[0].Addr().String()
	ask := func(name string, kind uint16) error { return show(address, name, kind) }
	for _, one := range []struct {
		name string
		kind uint16
	}{
		{"www", dns.TypeA}, {"www", dns.TypeAAAA}, {"six", dns.TypeAAAA}, {"alias", dns.TypeA}, {"alias", dns.TypeCNAME},
		{"many", dns.TypeA}, {"many", dns.TypeSRV}, {"text", dns.TypeTXT}, {"mail", dns.TypeMX}, {"grouped", dns.TypeA},
		{"*", dns.TypeA}, {"missing", dns.TypeA}, {"a.many", dns.TypeA}, {"a.b.c.missing", dns.TypeSRV},
	} {
		if err := ask(one.name+".satrap.test.", one.kind); err != nil {
			return err
		}
	}
	if err := ask("1.2.0.192.in-addr.arpa.", dns.TypePTR); err != nil {
		return err
	}
	return changed(ctx, client, ask)
}

// changed changes, adds and removes records, which the server must see at once: it keeps none.
func changed(ctx context.Context, client *clientv3.Client, ask func(string, uint16) error) error {
	if _, err := client.Put(ctx, "/skydns/test/satrap/www", `{"host":"192.0.2.77"}`); err != nil {
		return err
	}
	lease, err := client.Grant(ctx, 600)
	if err != nil {
		return err
	}
	if _, err := client.Put(ctx, "/skydns/test/satrap/leased", `{"host":"192.0.2.78","ttl":30}`, clientv3.WithLease(lease.ID)); err != nil {
		return err
	}
	for _, name := range []string{"www", "leased"} {
		if err := ask(name+".satrap.test.", dns.TypeA); err != nil {
			return err
		}
	}
	if _, err := client.Revoke(ctx, lease.ID); err != nil {
		return err
	}
	if _, err := client.Delete(ctx, "/skydns/test/satrap/many/", clientv3.WithPrefix()); err != nil {
		return err
	}
	for _, name := range []string{"leased", "many"} {
		if err := ask(name+".satrap.test.", dns.TypeA); err != nil {
			return err
		}
	}
	return nil
}

// show asks and prints the answer, its records sorted: their order is chance.
func show(address, name string, kind uint16) error {
	question := new(dns.Msg)
	question.SetQuestion(name, kind)
	client := dns.Client{Net: "tcp", Timeout: 10 * time.Second}
	answer, _, err := client.Exchange(question, address)
	if err != nil {
		return fmt.Errorf("%s %s: %w", name, dns.TypeToString[kind], err)
	}
	fmt.Println(name, dns.TypeToString[kind], dns.RcodeToString[answer.Rcode])
	for what, section := range [][]dns.RR{answer.Answer, answer.Extra} {
		var lines []string
		for _, one := range section {
			if one.Header().Rrtype != dns.TypeOPT {
				lines = append(lines, strings.ReplaceAll(one.String(), "\t", " "))
			}
		}
		slices.Sort(lines)
		for _, line := range lines {
			fmt.Println(" ", []string{"answer", "extra"}[what], line)
		}
	}
	return nil
}
