package main

import "github.com/gomodule/redigo/redis"

type sadd struct {
	pool *redis.Pool
}

func (s *sadd) add(id int64, endpoint string) error {
	connection := s.pool.Get()
	defer connection.Close()
	if endpoint == "" {
		_, err := connection.Do("SADD", "ids:"+minute(), id)
		return err
	}
	if err := connection.Send("SADD", "endpoints:"+minute(), endpoint); err != nil {
		return err
	}
	_, err := connection.Do("SADD", "ids:"+minute(), id)
	return err
}
