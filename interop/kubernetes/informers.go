package main

import (
	"context"
	"fmt"
	"maps"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/tools/cache"
)

// agreeMax is how long informers may take until they know what is there.
const agreeMax = 30 * time.Second

// informers starts several, each with connections, lists and watches of its own.
func (w *world) informers() ([]cache.SharedIndexInformer, context.CancelFunc, error) {
	ctx, stop := context.WithCancel(w)
	var all []cache.SharedIndexInformer
	for range informers {
		factory := dynamicinformer.NewFilteredDynamicSharedInformerFactory(w.objects, 0, "interop", nil)
		informer := factory.ForResource(widget).Informer()
		factory.Start(ctx.Done())
		if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
			stop()
			return nil, nil, fmt.Errorf("an informer does not start")
		}
		all = append(all, informer)
	}
	return all, stop, nil
}

// agree waits until every informer has exactly the objects, in exactly the versions, that a list of
// the store has.
func (w *world) agree(followers []cache.SharedIndexInformer, wanted int) error {
	list, err := w.widgets().List(w, meta.ListOptions{})
	if err != nil {
		return err
	}
	there := versions(list.Items)
	if len(there) != wanted {
		return fmt.Errorf("%d objects are there, not %d", len(there), wanted)
	}
	ctx, cancel := context.WithTimeout(w, agreeMax)
	defer cancel()
	for i, follower := range followers {
		known := map[string]string{}
		err := wait.PollUntilContextCancel(ctx, pollEvery, true, func(context.Context) (bool, error) {
			known = map[string]string{}
			for _, one := range follower.GetStore().List() {
				object := one.(*unstructured.Unstructured)
				known[object.GetName()] = object.GetResourceVersion()
			}
			return maps.Equal(known, there), nil
		})
		if err != nil {
			return fmt.Errorf("informer %d knows %d objects, %d are there, and they are not the same: %w",
				i, len(known), len(there), err)
		}
	}
	return nil
}

func versions(items []unstructured.Unstructured) map[string]string {
	all := map[string]string{}
	for _, item := range items {
		all[item.GetName()] = item.GetResourceVersion()
	}
	return all
}

// pages lists page by page while the first objects are changed: all pages are of one version. It
// returns that version.
func (w *world) pages(selector string) (string, error) {
	var version, next string
	read := 0
	for {
		list, err := w.widgets().List(w, meta.ListOptions{Limit: pageObjects, Continue: next, LabelSelector: selector})
		if err != nil {
			return "", fmt.Errorf("page after %d objects: %w", read, err)
		}
		w.counts.pages.Add(1)
		if version == "" {
			version = list.GetResourceVersion()
		}
		if list.GetResourceVersion() != version {
			return "", fmt.Errorf("a page of version %s among those of %s", list.GetResourceVersion(), version)
		}
		read += len(list.Items)
		if next = list.GetContinue(); next == "" {
			break
		}
		if _, err := w.widgets().Patch(w, name(0), "application/merge-patch+json",
			fmt.Appendf(nil, `{"spec":{"page":%d}}`, read), meta.PatchOptions{}); err != nil {
			return "", err
		}
		w.counts.changed.Add(1)
	}
	if read != w.wanted {
		return "", fmt.Errorf("%d objects on all pages, not %d", read, w.wanted)
	}
	return version, nil
}

// expired waits until an old version was compacted away, which the server does by itself, and
// checks that it says so.
func (w *world) expired(version string) error {
	ctx, cancel := context.WithTimeout(w, agreeMax)
	defer cancel()
	options := meta.ListOptions{
		ResourceVersion: version, ResourceVersionMatch: meta.ResourceVersionMatchExact, Limit: 1,
	}
	err := wait.PollUntilContextCancel(ctx, pollEvery, true, func(context.Context) (bool, error) {
		_, err := w.widgets().List(w, options)
		if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
			return true, nil
		}
		return false, err
	})
	if err != nil {
		return fmt.Errorf("version %s was not compacted: %w", version, err)
	}
	return nil
}
