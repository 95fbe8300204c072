package main

import (
	"sync"

	"github.com/gomodule/redigo/redis"
)

type batch struct {
	ids       redis.Args
	endpoints map[string]struct{}
	settled   chan struct{} // closed once err says how it went
	err       error
}

func newBatch() *batch {
	return &batch{endpoints: map[string]struct{}{}, settled: make(chan struct{})}
}

type groupCommit struct {
	pool *redis.Pool
	some chan struct{} // holds one token while the open batch is not empty
	mu   sync.Mutex
	open *batch
}

func newGroupCommit(pool *redis.Pool) *groupCommit {
	g := &groupCommit{pool: pool, some: make(chan struct{}, 1), open: newBatch()}
	go g.run()
	return g
}

func (g *groupCommit) add(id int64, endpoint string) error {
	g.mu.Lock()
	mine := g.open
	first := len(mine.ids) == 0
	mine.ids = append(mine.ids, id)
	if endpoint != "" {
		mine.endpoints[endpoint] = struct{}{}
	}
	g.mu.Unlock()
	if first {
		g.some <- struct{}{}
	}
	<-mine.settled
	return mine.err
}

func (g *groupCommit) run() {
	for range g.some {
		g.mu.Lock()
		full := g.open
		g.open = newBatch()
		g.mu.Unlock()
		full.err = g.store(full)
		close(full.settled)
	}
}

func (g *groupCommit) store(b *batch) error {
	connection := g.pool.Get()
	defer connection.Close()
	if len(b.endpoints) > 0 {
		endpoints := redis.Args{"endpoints:" + minute()}
		for endpoint := range b.endpoints {
			endpoints = append(endpoints, endpoint)
		}
		if err := connection.Send("SADD", endpoints...); err != nil {
			return err
		}
	}
	_, err := connection.Do("SADD", append(redis.Args{"ids:" + minute()}, b.ids...)...)
	return err
}
