package main

import (
	_ "embed"
	"fmt"
	"strings"
)

//go:embed script.txt
var scriptText string

// section is a part of the script that begins with two equal servers.
type section struct {
	name string
	// members is the least number of members both clusters must have.
	members  int
	commands []command
}

// command is one line of the script.
type command struct {
	words []string
	stdin string
	// from is the first version of etcdctl that has the command, or empty.
	from string
	// until is what the command prints when it may be interrupted; empty if it ends by itself.
	until string
	// differs says that the outcome is not compared.
	differs bool
	// start and stop name a command that is left running meanwhile.
	start, stop string
	// mirror is the key that a mirror must have before it is looked at.
	mirror string
}

// parse reads the whole script.
func parse(text string) ([]section, error) {
	var sections []section
	for number, line := range strings.Split(text, "\n") {
		if err := parseLine(&sections, line); err != nil {
			return nil, fmt.Errorf("script.txt:%d: %w", number+1, err)
		}
	}
	return sections, nil
}

func parseLine(sections *[]section, line string) error {
	if line == "" || strings.HasPrefix(line, "#") {
		return nil
	}
	if name, is := strings.CutPrefix(line, "== "); is {
		one := section{name: name, members: 1}
		if at := strings.Index(name, " ("); at >= 0 {
			if _, err := fmt.Sscanf(name[at:], " (%d members)", &one.members); err != nil {
				return err
			}
		}
		*sections = append(*sections, one)
		return nil
	}
	last := &(*sections)[len(*sections)-1]
	if input, is := strings.CutPrefix(line, "  |"); is {
		last.commands[len(last.commands)-1].stdin += strings.TrimPrefix(input, " ") + "\n"
		return nil
	}
	words, err := split(line)
	if err != nil {
		return err
	}
	var c command
	if mark, is := strings.CutPrefix(words[0], "["); is {
		mark, words = strings.TrimSuffix(mark, "]"), words[1:]
		if c.differs = mark == "differs"; !c.differs {
			c.from = mark
		}
	}
	switch words[0] {
	case "start":
		c.start, words = words[1], words[2:]
	case "stop":
		c.stop, words = words[1], nil
	case "mirror":
		c.mirror, words = words[1], append([]string{"make-mirror"}, words[2:]...)
	}
	if len(words) > 0 && words[0] == "until" {
		c.until, words = words[1], words[2:]
	}
	c.words = words
	last.commands = append(last.commands, c)
	return nil
}

// split cuts a line into words; a word in double quotes may hold blanks, or nothing.
func split(line string) ([]string, error) {
	var words []string
	for rest := strings.TrimSpace(line); rest != ""; rest = strings.TrimSpace(rest) {
		if rest[0] == '"' {
			end := strings.IndexByte(rest[1:], '"')
			if end < 0 {
				return nil, fmt.Errorf("a quote that does not end: %s", line)
			}
			words, rest = append(words, rest[1:1+end]), rest[end+2:]
			continue
		}
		word, after, _ := strings.Cut(rest, " ")
		words, rest = append(words, word), after
	}
	return words, nil
}
