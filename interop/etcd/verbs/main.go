// Command verbs runs every verb of etcd's command line on etcd and on the ring under test, and
// compares what it prints and how it ends, in each of its output formats. What need not be equal
// is listed at `mask`.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"satrap.invalid/interop/etcd/internal/ring"
)

// slowCommand is how long a command takes that is worth a remark.
const slowCommand = 3 * time.Second

var formats = []string{"simple", "json", "fields"}

type program struct {
	both     ring.Both
	etcdctl  string
	mirror   string
	only     string
	slow     bool
	version  string
	a, b     *side
	commands int
	differ   int
}

func main() {
	p := &program{}
	p.both.Register(flag.CommandLine)
	flag.StringVar(&p.etcdctl, "etcdctl", "etcdctl", "the `program` to run")
	flag.StringVar(&p.mirror, "mirror-binary", "", "the `etcd` to mirror into; --etcd-binary if empty")
	flag.StringVar(&p.only, "only", "", "run only the section whose name begins with `text`")
	flag.BoolVar(&p.slow, "slow", false, "run only the checks of performance and size, more than a minute")
	flag.Parse()
	takeInterrupts()
	equal, err := p.run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "verbs:", err)
		os.Exit(2)
	}
	if !equal {
		os.Exit(1)
	}
}

// takeInterrupts makes sure that what this process starts can be interrupted: a shell makes whatever
// it starts in the background ignore that signal, and every command would inherit it.
func takeInterrupts() {
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt)
	go func() {
		<-interrupted
		os.Exit(130)
	}()
}

func (p *program) run() (bool, error) {
	defer p.both.Stop()
	if err := p.both.Start(); err != nil {
		return false, err
	}
	text, err := exec.Command(p.etcdctl, "version").Output()
	if err != nil {
		return false, err
	}
	if _, err := fmt.Sscanf(string(text), "etcdctl version: %s", &p.version); err != nil {
		return false, err
	}
	folder, err := os.MkdirTemp("", "etcdctl-")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(folder)
	if p.mirror == "" {
		p.mirror = flag.Lookup("etcd-binary").Value.String()
	}
	for target, to := range map[*ring.Target]**side{&p.both.Etcd: &p.a, &p.both.Satrap: &p.b} {
		if *to, err = newSide(*target, p.mirror, folder); err != nil {
			return false, err
		}
		defer (*to).mirror.Stop()
	}
	if p.slow {
		return p.slowChecks(), nil
	}
	sections, err := parse(scriptText)
	if err != nil {
		return false, err
	}
	begun := time.Now()
	skipped, err := p.sections(sections)
	fmt.Printf("etcdctl %s: %d commands, %d differences, sections skipped: %d, %.0f s\n",
		p.version, p.commands, p.differ, skipped, time.Since(begun).Seconds())
	return p.differ == 0, err
}

func (p *program) sections(sections []section) (int, error) {
	skipped := 0
	for _, format := range formats {
		for _, one := range sections {
			if !strings.HasPrefix(one.name, p.only) {
				continue
			}
			if min(len(p.a.members), len(p.b.members)) < one.members {
				skipped++
				continue
			}
			if err := p.section(one, format); err != nil {
				return skipped, fmt.Errorf("section %s: %w", one.name, err)
			}
		}
	}
	return skipped, nil
}

func (p *program) section(one section, format string) error {
	base, err := ring.Level(p.a.connection, p.b.connection)
	if err != nil {
		return err
	}
	if one.members > 1 {
		if err := errors.Join(p.a.ripen(), p.b.ripen()); err != nil {
			return err
		}
	}
	values := [2]map[string]string{{}, {}}
	for _, each := range values {
		each["password"], each["peer"] = ring.RootPassword, freePeer
		// Before there is one, any id that no server would choose.
		each["lease"], each["member"] = "abc", "abc"
	}
	for _, c := range one.commands {
		if c.from > p.version {
			continue
		}
		var outputs [2]output
		var failures [2]error
		begun := time.Now()
		var both sync.WaitGroup
		for i, s := range []*side{p.a, p.b} {
			both.Go(func() {
				outputs[i], failures[i] = s.run(p.etcdctl, c, format, base, values[i])
				if failures[i] == nil && len(c.words) > 0 {
					s.followed(values[i], c.words[0])
					outputs[i].text = s.mask.apply(c.words[0], outputs[i].text)
				}
			})
		}
		both.Wait()
		for _, err := range failures {
			if err != nil {
				return err
			}
		}
		p.commands++
		if took := time.Since(begun); took > slowCommand {
			fmt.Printf("slow: %.1f s: etcdctl %s\n", took.Seconds(), strings.Join(c.words, " "))
		}
		if outputs[0] != outputs[1] && !c.differs {
			p.differ++
			fmt.Printf("DIFFERENCE in %q with -w %s: etcdctl %s\n--- etcd (exit %d)\n%s\n--- satrap (exit %d)\n%s\n\n",
				one.name, format, strings.Join(c.words, " "),
				outputs[0].code, outputs[0].text, outputs[1].code, outputs[1].text)
		}
	}
	return nil
}

// mirrored waits until the mirror has the key, and says what else it has.
func (s *side) mirrored(process *running, key string) output {
	client, err := s.mirror.Target.Client()
	if err != nil {
		return output{text: err.Error()}
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), commandMax)
	defer cancel()
	for {
		reply, err := client.Get(ctx, "", clientv3.WithPrefix())
		if err != nil {
			process.end()
			return output{text: err.Error() + process.printed()}
		}
		var text string
		found := false
		for _, kv := range reply.Kvs {
			text += fmt.Sprintf("%s=%s\n", kv.Key, kv.Value)
			found = found || string(kv.Key) == key
		}
		if found {
			process.end()
			_, err := client.Delete(ctx, "", clientv3.WithPrefix())
			if err != nil {
				return output{text: err.Error()}
			}
			return output{text: text}
		}
	}
}
