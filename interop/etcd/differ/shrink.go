package main

import (
	"slices"
	"time"
)

// shrink looks for few steps that still make the two servers differ: first the shortest end of the
// session that does, then that without whatever it can do without. It gives up at the deadline, or
// at once when the difference does not come again.
func shrink(a, b *side, steps []step, limit time.Duration) []step {
	deadline := time.Now().Add(limit)
	differs := func(some []step) bool {
		if time.Now().After(deadline) {
			return false
		}
		found, err := replay(a, b, some)
		return err == nil && found != nil
	}
	best := steps
	for length := 1; length < len(steps); length *= 2 {
		if end := steps[len(steps)-length:]; differs(end) {
			best = end
			break
		}
	}
	for chunk := len(best) / 2; chunk > 0; chunk /= 2 {
		for at := 0; at+chunk <= len(best); {
			without := slices.Delete(slices.Clone(best), at, at+chunk)
			if len(without) > 0 && differs(without) {
				best = without
			} else {
				at += chunk
			}
		}
	}
	return best
}
