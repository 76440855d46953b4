package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

// progressEvery is how often a barrier asks again: etcd says nothing while a watch catches up.
const progressEvery = 10 * time.Millisecond

// watchSide is one server's watch stream: what was asked on it, and all it delivered.
type watchSide struct {
	stream pb.Watch_WatchClient
	cancel context.CancelFunc
	// controls receives answers to create and cancel requests, in order.
	controls chan *pb.WatchResponse

	mu      sync.Mutex
	changed chan struct{} // closed and replaced whenever something arrives
	logs    map[int64]*watchLog
	// swept are the watches that a compaction ended and that were then canceled, so that the server
	// forgets them: while etcd knows such a watch, it reports no progress on the whole stream.
	swept map[int64]bool
	// creating is the request that the next created response answers.
	creating *pb.WatchCreateRequest
	// progress is the newest revision the server said it has delivered everything up to.
	progress int64
	// newest is the highest revision of any header.
	newest int64
	// faults are breaches of the rules every watch stream keeps, whatever the other server says.
	faults []string
	ended  error
}

// watchLog is what one watch delivered since the last comparison.
type watchLog struct {
	request *pb.WatchCreateRequest
	// born is the revision at which it was created.
	born   int64
	open   bool
	events []*mvccpb.Event
	// last is the revision of the last event of the response before.
	last int64
	// end is the response that ended the watch behind a compaction.
	end *pb.WatchResponse
}

func openWatches(s *side) (*watchSide, error) {
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := pb.NewWatchClient(s.connections[0]).Watch(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	w := &watchSide{
		stream: stream, cancel: cancel, controls: make(chan *pb.WatchResponse, 16),
		changed: make(chan struct{}), logs: map[int64]*watchLog{},
		swept: map[int64]bool{},
	}
	go w.receive()
	return w, nil
}

func (w *watchSide) receive() {
	for {
		response, err := w.stream.Recv()
		w.mu.Lock()
		answers := false
		if err != nil {
			w.ended = err
		} else {
			answers = w.take(response)
		}
		close(w.changed)
		w.changed = make(chan struct{})
		w.mu.Unlock()
		if err != nil {
			close(w.controls)
			return
		}
		if answers {
			w.controls <- response
		}
	}
}

// take files one response and says whether a step waits for it. The caller holds the lock.
func (w *watchSide) take(response *pb.WatchResponse) bool {
	id := response.WatchId
	w.newest = max(w.newest, response.Header.GetRevision())
	switch {
	case response.Created:
		if !response.Canceled {
			w.logs[id] = &watchLog{open: true, request: w.creating, born: response.Header.GetRevision()}
		}
		return true
	case response.Canceled && response.CompactRevision == 0:
		if w.swept[id] {
			return false
		}
		if log := w.logs[id]; log != nil {
			log.open = false
		}
		return true
	case id == -1:
		if len(response.Events) != 0 {
			w.fault("a progress report with events: %s", shown(response))
		}
		w.progress = max(w.progress, response.Header.GetRevision())
	default:
		w.takeEvents(response)
	}
	return false
}

func (w *watchSide) takeEvents(response *pb.WatchResponse) {
	log := w.logs[response.WatchId]
	if log == nil || !log.open {
		w.fault("events of a watch that is not open: %s", shown(response))
		return
	}
	if response.Canceled {
		maskHeader(response.Header)
		log.end, log.open = response, false
		return
	}
	if response.CancelReason != "" || response.CompactRevision != 0 {
		w.fault("events of a watch that goes on, with why it ends: %s", shown(response))
	}
	for i, event := range response.Events {
		revision := event.GetKv().GetModRevision()
		if revision < log.last || (i == 0 && revision == log.last && !log.request.Fragment) {
			w.fault("a revision out of order or in two responses: %s", shown(response))
		}
		if revision > response.Header.GetRevision() {
			w.fault("an event from after its header's revision: %s", shown(response))
		}
		log.last = revision
	}
	log.events = append(log.events, response.Events...)
}

func (w *watchSide) fault(format string, arguments ...any) {
	w.faults = append(w.faults, fmt.Sprintf(format, arguments...))
}

// send asks something on the stream and waits for the answer, if there is one to come.
func (w *watchSide) send(request *pb.WatchRequest) (proto.Message, error) {
	w.mu.Lock()
	if create := request.GetCreateRequest(); create != nil {
		w.creating = create
	}
	w.mu.Unlock()
	if cancel := request.GetCancelRequest(); cancel != nil && !w.answersCancel(cancel.WatchId) {
		return nil, w.stream.Send(request)
	}
	if err := w.stream.Send(request); err != nil {
		return nil, errors.Join(err, w.ended)
	}
	if request.GetProgressRequest() != nil {
		return nil, nil
	}
	select {
	case response, open := <-w.controls:
		if !open {
			return nil, w.ended
		}
		return response, nil
	case <-time.After(answerMax):
		return nil, errors.New("no answer to a watch request")
	}
}

// answersCancel says whether the server has such a watch: only then does it answer.
func (w *watchSide) answersCancel(id int64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	log := w.logs[id]
	return log != nil && log.open
}

// settle waits until the server says that everything up to the revision is delivered, or that
// every watch has ended.
func (w *watchSide) settle(revision int64) error {
	deadline := time.Now().Add(answerMax)
	for {
		if err := w.sweep(); err != nil {
			return errors.Join(err, w.ended)
		}
		w.mu.Lock()
		done, ended, changed := w.progress >= revision, w.ended, w.changed
		if !done && w.none() {
			done = true
		}
		w.mu.Unlock()
		if done || ended != nil {
			return ended
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("no progress report for revision %d, only %d", revision, w.progress)
		}
		request := &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}
		if err := w.stream.Send(&pb.WatchRequest{RequestUnion: request}); err != nil {
			return errors.Join(err, w.ended)
		}
		select {
		case <-changed:
		case <-time.After(progressEvery):
		}
	}
}

// sweep cancels the watches that a compaction ended.
func (w *watchSide) sweep() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, log := range w.logs {
		if log.end == nil || w.swept[id] {
			continue
		}
		w.swept[id] = true
		cancel := &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: id}}
		if err := w.stream.Send(&pb.WatchRequest{RequestUnion: cancel}); err != nil {
			return err
		}
	}
	return nil
}

// none says that no watch is open. The caller holds the lock.
func (w *watchSide) none() bool {
	for _, log := range w.logs {
		if log.open {
			return false
		}
	}
	return true
}
