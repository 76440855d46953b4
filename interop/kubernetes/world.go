package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	extensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
)

const (
	// workers act at the same time.
	workers = 8
	// informers follow at the same time.
	informers = 5
	// pageObjects is how many objects one page of a list has.
	pageObjects = 75
	// pollEvery is how often something that takes its time is asked for.
	pollEvery = 50 * time.Millisecond
)

var (
	group  = "interop.satrap.invalid"
	widget = schema.GroupVersionResource{Group: group, Version: "v1", Resource: "widgets"}
)

// world is a running API server, and what is done to it.
type world struct {
	context.Context
	definitions clientset.Interface
	objects     dynamic.Interface
	wanted      int
	counts      counts
}

// counts is what was done.
type counts struct {
	made, changed, deleted, conflicts, pages, watched atomic.Int64
}

// String is the line that is printed.
func (c *counts) String() string {
	return fmt.Sprintf("%d objects made, %d changes, %d conflicts, %d deleted, %d pages, %d events watched by one of %d informers and a watch",
		c.made.Load(), c.changed.Load(), c.conflicts.Load(), c.deleted.Load(), c.pages.Load(), c.watched.Load(), informers)
}

func (w *world) everything() (*counts, error) {
	stages := []struct {
		name string
		run  func() error
	}{
		{"define", w.define},
		{"follow", w.follow},
	}
	for _, stage := range stages {
		if err := stage.run(); err != nil {
			return &w.counts, fmt.Errorf("%s: %w", stage.name, err)
		}
	}
	return &w.counts, nil
}

// define makes the kind of object, and waits until it is served.
func (w *world) define() error {
	preserve := true
	definition := &extensions.CustomResourceDefinition{
		ObjectMeta: meta.ObjectMeta{Name: "widgets." + group},
		Spec: extensions.CustomResourceDefinitionSpec{
			Group: group, Scope: extensions.NamespaceScoped,
			Names: extensions.CustomResourceDefinitionNames{
				Plural: "widgets", Singular: "widget", Kind: "Widget", ListKind: "WidgetList"},
			Versions: []extensions.CustomResourceDefinitionVersion{{
				Name: "v1", Served: true, Storage: true,
				Schema: &extensions.CustomResourceValidation{OpenAPIV3Schema: &extensions.JSONSchemaProps{
					Type: "object", XPreserveUnknownFields: &preserve}},
				Subresources: &extensions.CustomResourceSubresources{Status: &extensions.CustomResourceSubresourceStatus{}},
			}},
		},
	}
	api := w.definitions.ApiextensionsV1().CustomResourceDefinitions()
	if _, err := api.Create(w, definition, meta.CreateOptions{}); err != nil {
		return err
	}
	return wait.PollUntilContextCancel(w, pollEvery, true, func(context.Context) (bool, error) {
		_, err := w.widgets().List(w, meta.ListOptions{})
		if apierrors.IsNotFound(err) {
			return false, nil
		}
		return err == nil, err
	})
}

func (w *world) widgets() dynamic.ResourceInterface {
	return w.objects.Resource(widget).Namespace("interop")
}

func name(i int) string { return fmt.Sprintf("widget-%05d", i) }

// each does something with every object, by several workers at once.
func (w *world) each(do func(i int) error) error {
	var working sync.WaitGroup
	failures := make([]error, workers)
	for worker := range workers {
		working.Go(func() {
			for i := worker; i < w.wanted && failures[worker] == nil; i += workers {
				failures[worker] = do(i)
			}
		})
	}
	working.Wait()
	return errors.Join(failures...)
}

// follow does everything while informers and one bare watch follow.
func (w *world) follow() error {
	begin, err := w.widgets().List(w, meta.ListOptions{})
	if err != nil {
		return err
	}
	bare, err := w.widgets().Watch(w, meta.ListOptions{ResourceVersion: begin.GetResourceVersion(), AllowWatchBookmarks: true})
	if err != nil {
		return err
	}
	defer bare.Stop()
	seen := make(chan error, 1)
	go func() { seen <- w.check(bare) }()
	followers, stop, err := w.informers()
	if err != nil {
		return err
	}
	defer stop()
	if err := w.each(w.make); err != nil {
		return fmt.Errorf("make: %w", err)
	}
	made, err := w.pages("")
	if err != nil {
		return err
	}
	if err := w.each(w.change); err != nil {
		return fmt.Errorf("change: %w", err)
	}
	if err := w.each(w.contend); err != nil {
		return fmt.Errorf("contend: %w", err)
	}
	if err := w.agree(followers, w.wanted); err != nil {
		return fmt.Errorf("after the changes: %w", err)
	}
	if err := w.expired(made); err != nil {
		return err
	}
	if err := w.remove(); err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	if err := w.agree(followers, 0); err != nil {
		return fmt.Errorf("after the end: %w", err)
	}
	return <-seen
}

func (w *world) make(i int) error {
	object := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": group + "/v1", "kind": "Widget",
		"metadata": map[string]any{"name": name(i), "labels": map[string]any{"third": strconv.Itoa(i % 3)}},
		"spec":     map[string]any{"size": int64(i), "text": fmt.Sprint("number ", i)},
	}}
	if i%10 == 0 {
		object.SetFinalizers([]string{group + "/held"})
	}
	if _, err := w.widgets().Create(w, object, meta.CreateOptions{}); err != nil {
		return err
	}
	w.counts.made.Add(1)
	_, err := w.widgets().Create(w, object, meta.CreateOptions{})
	if i%50 == 0 && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("made twice: %v", err)
	}
	return nil
}

// change patches the object, and its status through its own path.
func (w *world) change(i int) error {
	patch := fmt.Appendf(nil, `{"spec":{"size":%d}}`, i+1)
	if _, err := w.widgets().Patch(w, name(i), types.MergePatchType, patch, meta.PatchOptions{}); err != nil {
		return err
	}
	status := []byte(`{"status":{"ready":true}}`)
	changed, err := w.widgets().Patch(w, name(i), types.MergePatchType, status, meta.PatchOptions{}, "status")
	if err != nil {
		return err
	}
	if size, _, _ := unstructured.NestedInt64(changed.Object, "spec", "size"); size != int64(i+1) {
		return fmt.Errorf("%s has size %d", name(i), size)
	}
	w.counts.changed.Add(2)
	return nil
}

// contend has two change the same version of an object: one must be refused.
func (w *world) contend(i int) error {
	if i%5 != 0 {
		return nil
	}
	one, err := w.widgets().Get(w, name(i), meta.GetOptions{})
	if err != nil {
		return err
	}
	var results [2]error
	var both sync.WaitGroup
	for at := range results {
		mine := one.DeepCopy()
		mine.SetAnnotations(map[string]string{"who": strconv.Itoa(at)})
		both.Go(func() { _, results[at] = w.widgets().Update(w, mine, meta.UpdateOptions{}) })
	}
	both.Wait()
	refused := results[0]
	if refused == nil {
		refused = results[1]
	} else if results[1] != nil {
		return fmt.Errorf("both were refused: %w", errors.Join(results[:]...))
	}
	if !apierrors.IsConflict(refused) {
		return fmt.Errorf("two changed the same version of %s: %v", name(i), refused)
	}
	w.counts.changed.Add(1)
	w.counts.conflicts.Add(1)
	return nil
}

// remove deletes half of the objects one by one and the rest at once. Some are held until someone
// lets go of them.
func (w *world) remove() error {
	if err := w.each(func(i int) error {
		if i%2 != 0 {
			return nil
		}
		return w.widgets().Delete(w, name(i), meta.DeleteOptions{})
	}); err != nil {
		return err
	}
	if err := w.widgets().DeleteCollection(w, meta.DeleteOptions{}, meta.ListOptions{}); err != nil {
		return err
	}
	return w.each(func(i int) error {
		if i%10 != 0 {
			w.counts.deleted.Add(1)
			_, err := w.widgets().Get(w, name(i), meta.GetOptions{})
			if !apierrors.IsNotFound(err) {
				return fmt.Errorf("%s is still there: %v", name(i), err)
			}
			return nil
		}
		w.counts.deleted.Add(1)
		free := []byte(`{"metadata":{"finalizers":null}}`)
		_, err := w.widgets().Patch(w, name(i), types.MergePatchType, free, meta.PatchOptions{})
		return err
	})
}

// check follows every event from the begin to the last deletion: versions grow, no object changes
// before it is made, and none is seen after it was deleted.
func (w *world) check(bare watch.Interface) error {
	alive, gone, newest := map[string]bool{}, 0, uint64(0)
	for event := range bare.ResultChan() {
		object, is := event.Object.(*unstructured.Unstructured)
		if !is {
			return fmt.Errorf("the watch ended: %v", apierrors.FromObject(event.Object))
		}
		version, err := strconv.ParseUint(object.GetResourceVersion(), 10, 64)
		if err != nil {
			return err
		}
		if version < newest || (version == newest && event.Type != watch.Bookmark) {
			return fmt.Errorf("%s of version %d after %d", event.Type, version, newest)
		}
		newest = version
		switch event.Type {
		case watch.Bookmark:
			continue
		case watch.Added:
			alive[object.GetName()] = true
		default:
			if !alive[object.GetName()] {
				return fmt.Errorf("%s of %s, which is not there", event.Type, object.GetName())
			}
		}
		w.counts.watched.Add(1)
		if event.Type == watch.Deleted {
			delete(alive, object.GetName())
			gone++
		}
		if gone == w.wanted {
			return nil
		}
	}
	return fmt.Errorf("the watch ended after %d deletions", gone)
}
