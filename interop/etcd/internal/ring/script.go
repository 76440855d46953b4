package ring

import (
	"fmt"
	"strconv"
	"strings"
)

// Revisions replaces each {base+N} of a script by a number.
func Revisions(text string, base int64) (string, error) {
	for {
		before, rest, found := strings.Cut(text, "{base")
		if !found {
			return text, nil
		}
		offset, after, closed := strings.Cut(rest, "}")
		if !closed {
			return "", fmt.Errorf("a brace that does not end: %s", text)
		}
		number := int64(0)
		if offset != "" {
			var err error
			if number, err = strconv.ParseInt(strings.TrimPrefix(offset, "+"), 10, 64); err != nil {
				return "", err
			}
		}
		text = before + strconv.FormatInt(base+number, 10) + after
	}
}
